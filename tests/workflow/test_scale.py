"""Shards, statistics of shards, processes: how work is cut up changes no number."""

import os
import shutil

from conftest import Project

FEATURES = "results/cache/features"


def test_shards_and_their_statistics_change_no_metric(project: Project) -> None:
    wanted = (project.folder / "results/tiny/metrics.parquet").read_bytes()
    project.configure(**{"features.shards": {"alloys": {"train": 3, "far": 2}}, "features.statistics_by_shard": True})
    planned = project.would_run()
    assert planned["features"] == 5
    # Of the training parts, for the fits whose head is there before them: the molecules have one shard.
    assert planned["summarise_shard"] == 3 + 1
    project.snakemake()
    assert (project.folder / "results/tiny/metrics.parquet").read_bytes() == wanted
    assert project.would_run() == {}


def test_a_damaged_shard_is_named_and_the_rest_of_the_run_is_whole(project: Project) -> None:
    run = project.folder / "results/tiny"
    wanted = {file.relative_to(run): file.read_bytes() for file in (run / "metrics").rglob("*.parquet")}
    project.configure(**{"features.shards": {"alloys": {"train": 2}}})
    shards = [next((project.folder / FEATURES).glob("*/alloys-*/train")) / f"{shard}-of-2" for shard in range(2)]
    project.snakemake(*(str(shard.relative_to(project.folder)) for shard in shards))
    file = max(shards[0].glob("*.parquet"), key=lambda path: path.stat().st_size)
    content, stamp = bytearray(file.read_bytes()), file.stat()
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    shutil.rmtree(run)
    done = project.snakemake(check=False)
    assert done.returncode != 0
    # At the end it stands once more, with what the job was to do.
    _, end = (done.stdout + done.stderr).split("or were grouped with one that did:")
    assert "  Fitting bll-mse to alloys, mptrj, seed 0\n" in end
    assert str(file.relative_to(project.folder)) in end
    found = {file.relative_to(run): file.read_bytes() for file in (run / "metrics").rglob("*.parquet")}
    assert {path.parts[2].split("-")[0] for path in found} == {"molecules"}
    assert found == {path: content for path, content in wanted.items() if "molecules" in path.parts[2]}
