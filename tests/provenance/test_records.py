"""What a job writes down about itself, and when it refuses to."""

import os
import subprocess
from pathlib import Path

import pytest

from forceuq.errors import DataError
from forceuq.provenance import artefacts, digests
from forceuq.provenance.jobs import plain, recorded
from forceuq.provenance.places import Folder, folder_of_log, kept, read_made
from forceuq.provenance.schema import Record, read_record
from tests.provenance.conftest import SOURCE, Tree

FIT = "bll/alloys/t/seed1"


def count_hashes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list that every file which a job hashes is added to."""
    seen: list[Path] = []

    def counted(path: Path) -> tuple[str, digests.Stat]:
        seen.append(path)
        return digests.hashed(path)

    monkeypatch.setattr(artefacts, "hashed", counted)
    return seen


def predict(tree: Tree, name: str = "again"):
    """Return a job that takes the features and a fit."""
    return tree.job(
        "predict",
        f"/{name}",
        input={"features": ["cache/features/small/alloys/train"], "fit": f"demo/fits/{FIT}"},
        output={"predictions": f"demo/predictions/{name}"},
    )


def test_a_record_says_what_went_in_and_out_and_on_what(made: Tree) -> None:
    record = read_record(made.record(f"fit/{FIT}"))
    assert (record.rule, record.seed, record.run) == ("fit", 1, "demo")
    assert record.params["options"] == {"learning_rate": 1e-3}
    (taken,) = record.inputs
    producer = read_record(made.results / taken.record.path)
    assert taken.record.digest == producer.digest
    assert (taken.name, taken.path, taken.sha256) == ("train", producer.outputs[0].path, producer.outputs[0].sha256)
    (output,) = record.outputs
    assert {file.path for file in output.files} == {"part.bin", "report.json"}
    assert output.size == 400
    for file in output.files:
        done = subprocess.run(
            ["sha256sum", made.results / output.path / file.path], capture_output=True, text=True, check=True
        )
        assert done.stdout.split()[0] == file.sha256
    assert record.machine.host == os.uname().nodename
    assert record.machine.threads == 2
    assert record.usage.started < record.usage.ended
    assert 0 < record.usage.recording_seconds <= record.usage.seconds
    assert record.usage.peak_memory_bytes > 2**20
    assert record.software.versions["numpy"] == __import__("numpy").__version__
    assert b"\nnumpy==" in kept(Folder(made.results, "demo"), record.software.packages)


def test_the_code_that_ran_is_kept(made: Tree) -> None:
    record = read_record(made.record("table2"))
    source = kept(Folder(made.results, "demo"), record.code.modules["forceuq.files"])
    assert source == Path(digests.__file__).parents[1].joinpath("files.py").read_bytes()


def test_a_download_says_which_address_gave_it(made: Tree) -> None:
    record = read_record(made.record("cache:download/alloys"))
    assert record.facts["url"] == SOURCE["urls"][1]
    assert record.params["source"] == SOURCE


def test_a_failed_job_has_no_record_and_its_old_one_is_set_aside(tree: Tree) -> None:
    path = tree.record("table2")
    old = read_record(path)
    job = tree.job("table2", "", input={"metrics": "demo/metrics.parquet"}, output={"csv": "demo/tables/table2.csv"})
    with pytest.raises(ZeroDivisionError), recorded(job, tree.root):
        _ = 1 / 0
    assert not path.exists()
    assert read_record(tree.run / "records/.superseded" / f"{old.digest}.json") == old


def test_a_job_whose_record_cannot_be_written_fails(tree: Tree) -> None:
    blocked = tree.run / "records/predict/again.json"
    blocked.mkdir(parents=True)
    (blocked / "x").touch()
    with pytest.raises(OSError, match="again"):
        tree.do(predict(tree))


def test_a_job_whose_output_is_missing_fails(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), recorded(predict(tree), tree.root):
        pass
    assert "predictions/again" in capsys.readouterr().err
    assert not tree.record("predict/again").exists()


@pytest.mark.parametrize("file", ["cache/features/small/alloys/train/part.bin", f"demo/fits/{FIT}/report.json"])
def test_a_job_refuses_an_input_that_is_not_what_its_record_says(
    tree: Tree, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree.results / file).write_bytes(b"other")
    with pytest.raises(SystemExit):
        tree.do(predict(tree))
    said = capsys.readouterr().err
    assert str((tree.results / file).parent) in said
    assert "Remove it, to make it again" in said


def test_a_job_refuses_an_input_whose_record_was_edited(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    path = tree.record(f"fit/{FIT}")
    path.write_text(path.read_text().replace('"learning_rate": 0.001', '"learning_rate": 0.002'))
    with pytest.raises(SystemExit):
        tree.do(predict(tree))
    assert "was edited" in capsys.readouterr().err


def test_an_input_that_changes_while_the_job_runs_is_an_error(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    job = predict(tree)

    def work() -> None:
        with recorded(job, tree.root):
            tree.fill(Path(job.output["predictions"]))
            tree.fill(Path(job.input["fit"]), b"other bytes")

    with pytest.raises(SystemExit):
        work()
    assert "while the job that reads it ran" in capsys.readouterr().err


def test_a_file_is_hashed_by_its_maker_and_not_by_those_that_take_it(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.fit("swag", 7)
    seen = count_hashes(monkeypatch)
    job = tree.job("calibrate", "/x", input={"fit": "demo/fits/swag/alloys/t/seed7"}, output={"a": "demo/a.json"})
    tree.do(job)
    assert seen == [Path(job.output["a"])]


def test_a_touched_file_is_hashed_once_more_and_then_trusted_again(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tree.results / "cache/backbones/small/small.bin"
    seen = count_hashes(monkeypatch)
    for expected in (1, 0):  # the tree is a copy: all inodes are new
        job = tree.job(
            "head", "/x", input={"weights": "cache/backbones/small/small.bin"}, output={"head": "demo/head.bin"}
        )
        tree.do(job)
        assert seen.count(weights) == expected
        seen.clear()
    os.utime(weights)
    tree.do(job)
    assert seen.count(weights) == 1


def test_an_input_without_a_record_is_hashed_and_listed(tree: Tree) -> None:
    outside = tree.root / "outside.bin"
    outside.write_bytes(b"data")
    job = tree.job("head", "/x", input={"file": "../outside.bin"}, output={"head": "demo/head.bin"})
    tree.do(job)
    (taken,) = read_record(tree.record("head/x")).inputs
    assert (taken.path, taken.record) == (str(outside), None)


def test_git_clean_and_dirty(tree: Tree) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", tree.root, *identity, *arguments], check=True, capture_output=True)

    def recorded_state() -> Record:
        tree.do(predict(tree))
        return read_record(tree.record("predict/again"))

    git("init")
    (tree.root / ".gitignore").write_text("results\n")
    (tree.root / "code.py").write_text("x = 1\n")
    git("add", ".")
    git("commit", "-m", "first")
    clean = recorded_state()
    assert (len(clean.git.commit), clean.git.dirty, clean.git.diff) == (40, False, None)
    (tree.root / "code.py").write_text("x = 2\n")
    (tree.root / "new.py").write_text("y = 3\n")
    dirty = recorded_state()
    assert dirty.git.dirty
    difference = kept(Folder(tree.results, "demo"), dirty.git.diff).decode()
    assert "-x = 1\n+x = 2" in difference
    assert "untracked new.py" in difference
    assert "y = 3" in difference


def test_the_slurm_job_is_named(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    tree.do(predict(tree))
    assert read_record(tree.record("predict/again")).machine.slurm_job_id == "4711"


def test_params_that_json_cannot_hold_are_refused() -> None:
    assert plain({"a": (1, Path("x")), "b": {"z", "y"}, 3: None}) == {"a": [1, "x"], "b": ["y", "z"], "3": None}
    with pytest.raises(DataError, match="object"):
        plain({"a": object()})


@pytest.mark.parametrize(
    ("log", "rule", "expected"),
    [
        ("results/demo/logs/fit/a/b.log", "fit", "results/demo/records/fit/a/b.json"),
        ("/data/logs/results/demo/logs/table2.log", "table2", "/data/logs/results/demo/records/table2.json"),
        ("results/cache/logs/features/v1.5.log", "features", "results/cache/records/features/v1.5.json"),
    ],
)
def test_a_record_lies_where_the_log_does(log: str, rule: str, expected: str) -> None:
    assert folder_of_log(Path(log), rule)[1] == Path(expected)


def test_a_log_elsewhere_is_an_error() -> None:
    with pytest.raises(DataError, match="logs/fit"):
        folder_of_log(Path("results/demo/log/fit/a.log"), "fit")


@pytest.mark.parametrize("damage", [b"{", b"[]", b'{"schema": "other", "version": 1}', b""])
def test_what_is_no_record_is_an_error_that_names_it(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(damage)
    with pytest.raises(DataError, match="record.json"):
        read_record(path)


def test_markers_of_the_workflow_engine_are_not_part_of_a_directory(tree: Tree) -> None:
    folder = tree.results / "cache/features/small/alloys/train"
    before = artefacts.made_artefact("x", folder, tree.results)[0]
    (folder / ".snakemake_timestamp").touch()
    assert artefacts.made_artefact("x", folder, tree.results)[0] == before


def test_every_output_leads_to_its_record(made: Tree) -> None:
    note = read_made(made.results, f"demo/metrics/{FIT}")
    assert note is not None
    assert note.record == f"metrics/{FIT}.json"
