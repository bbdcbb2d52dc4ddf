"""One change at a time: exactly the jobs that it concerns would run again, and the summary says why."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Project, copy_project

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

FITS = {
    f"{method} to {place}, seed 0"
    for method in ("bll-mse", "bll-pretrained")
    for place in ("molecules, methylamine", "alloys, mptrj")
}
FIGURES = {
    "Drawing the metrics before and after recalibration",
    "Drawing the metrics as the distribution shifts",
}
STRATA = {"Counting the strata of alloys"}
SURFACES = {
    "Drawing the validation likelihood of molecules, methylamine",
    "Drawing the validation likelihood of alloys, mptrj",
}
LEDGER = {"Writing the ledger of the run's records"}
AFTER_METRICS = {
    "Merging the metrics",
    "Writing Table 2",
    "Asking which methods differ on molecules",
    "Asking which methods differ on alloys",
    *FIGURES,
    *LEDGER,
}
COSTS = {"Writing what the fits cost", "Writing Table 1"}


def of_fit(method: str, place: str, seed: int = 0) -> set[str]:
    """Return the jobs of one fit, from its making to its metrics."""
    fit = f"{method}, {place}, seed {seed}"
    return {
        f"Fitting {method} to {place}, seed {seed}",
        *(f"{verb} {fit}" for verb in ("Predicting with", "Calibrating", "Measuring")),
    }


def of_method(method: str, seed: int = 0) -> set[str]:
    """Return the jobs of a method's fits and all that follows from them."""
    fits = of_fit(method, "molecules, methylamine", seed) | of_fit(method, "alloys, mptrj", seed)
    return fits | AFTER_METRICS | COSTS


def cached(project: Project) -> int:
    """Return how many feature caches there are."""
    return len(list(project.folder.glob("results/cache/records/features/**/*.json")))


def test_the_mathematics_of_the_bll(project: Project) -> None:
    project.edit("forceuq/bll/posterior.py", "np.eye(len(phi)) + whitened", "2.0 * np.eye(len(phi)) + whitened")
    assert project.planned() == of_method("bll-mse") | of_method("bll-pretrained") | SURFACES
    assert project.why() == [
        "forceuq/bll/posterior.py changed: 4 fits, 4 predictions, 4 calibrations, 4 measurements, 1 merging, "
        "2 comparisons, 4 figures, 3 tables, 1 ledger"
    ]


def test_the_colour_of_a_plot(project: Project) -> None:
    project.edit("forceuq/figures/style.py", 'COLORS = ("', 'COLORS = ("#000000", "')
    assert project.planned() == FIGURES | STRATA | SURFACES | LEDGER
    assert project.why() == ["forceuq/figures/style.py changed: 5 figures, 1 ledger"]


def test_a_docstring_and_a_comment(project: Project) -> None:
    project.edit("forceuq/bll/posterior.py", '"""', '"""Said otherwise. ')
    project.edit("forceuq/methods/bll.py", "\ndef ", "\n# A word.\ndef ")
    assert project.planned() == set()
    assert project.why() == ["Nothing to do: every result is there and up to date."]


def test_a_shared_helper(project: Project) -> None:
    # Read by every job that reads or writes tables of metrics, by none before.
    project.edit("forceuq/metric_tables.py", "\ndef ", "\ndef _added():\n    return 1\n\n\ndef ")
    measured = {message for message in of_method("bll-mse") | of_method("bll-pretrained") if "Measuring" in message}
    assert project.planned() == measured | AFTER_METRICS | {"Writing Table 1"}


def test_the_learning_rate_of_one_method(project: Project) -> None:
    project.configure(**{"methods.bll-mse.options.learning_rate": 0.002})
    assert project.planned() == of_method("bll-mse") | SURFACES
    assert project.why() == [
        "learning_rate of bll-mse changed 0.001 -> 0.002: 2 fits, 2 predictions, 2 calibrations, 2 measurements, "
        "1 merging, 2 comparisons, 4 figures, 3 tables, 1 ledger"
    ]


def test_one_more_seed(project: Project) -> None:
    project.configure(**{"methods.bll-mse.seeds": [0, 1]})
    assert project.planned() == of_method("bll-mse", seed=1)
    (line,) = project.why()
    assert line.startswith("bll-mse, seed 1, is not there yet: 2 fits, 2 predictions")


def test_one_more_method(project: Project) -> None:
    project.configure(**{"methods.bll-nlml": {"kind": "bll", "label": "BLL, nlml", "options": {"projection": "nlml"}}})
    assert project.planned() == of_method("bll-nlml") | SURFACES
    (line,) = project.why()
    assert line.startswith("bll-nlml, seed 0, is not there yet: 2 fits, 2 predictions")


def test_a_package_reruns_what_imports_it(project: Project) -> None:
    def install(name: str, version: str) -> Path:
        folder = project.folder / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        return folder

    # Found before the installed one, since the copy stands first on the path.
    folders = [install("tqdm", "99.0"), install("matplotlib", "99.0")]
    assert project.planned() == FIGURES | STRATA | SURFACES | LEDGER
    (line,) = project.why()
    assert line.startswith("matplotlib 3.")
    assert line.endswith(" -> 99.0: 5 figures, 1 ledger")
    for folder in folders:
        shutil.rmtree(folder)
    install("torch", "99.0")
    with_torch = {"fit": 4, "predict": 4, "features": cached(project), "export_head": 1}
    would_run = project.would_run()
    assert with_torch.items() <= would_run.items()
    assert not would_run.keys() & {"download", "generate", "read_structures", "split"}


def test_time_stamps_alone(project: Project) -> None:
    results = project.folder / "results"
    raw = max(results.glob("cache/datasets/alloys-*/raw"), key=os.path.getsize)
    # What is made first becomes the newest: the worst order. Markers inside directories too.
    files = sorted((path for path in results.rglob("*") if path.is_file()), key=os.path.getmtime, reverse=True)
    assert any(path.name == ".snakemake_timestamp" for path in files)
    now = raw.stat().st_mtime + 1e6
    for i, path in enumerate(files):
        os.utime(path, (now + i, now + i))
    for path in project.folder.rglob("*.smk"):
        path.touch()
    assert project.planned() == set()
    assert project.why() == ["Nothing to do: every result is there and up to date."]


def test_large_files_are_compared_by_content(project: Project) -> None:
    """Snakemake's own limit is 1 MB: above it, a touched file would count as changed."""
    profile = (project.folder / "profiles/default/config.yaml").read_text()
    assert "max-checksum-file-size: 1PB" in profile
    weights = next(project.folder.glob("results/cache/backbones/*/forceuq-small.safetensors"))
    content = weights.read_bytes()
    project.edit("profiles/default/config.yaml", "max-checksum-file-size: 1PB", "max-checksum-file-size: 1")
    weights.touch()
    assert project.would_run()["features"] == cached(project), (
        "the limit has no effect here, so this test shows nothing"
    )
    project.edit("profiles/default/config.yaml", "max-checksum-file-size: 1", "max-checksum-file-size: 1PB")
    assert project.would_run() == {}
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert project.would_run()["features"] == cached(project)


def test_other_content_under_an_old_time_stamp(project: Project) -> None:
    """Also where size and inode stay as they were: the file system's own time tells."""
    raw = next(project.folder.glob("results/cache/datasets/alloys-*/raw"))
    state, content = raw.stat(), raw.read_bytes()
    place = content.rindex(b"}") - 1
    with raw.open("r+b") as handle:
        handle.seek(place)
        handle.write(bytes([content[place] ^ 1]))
    os.utime(raw, ns=(state.st_atime_ns, state.st_mtime_ns))
    alloys = raw.parent.name
    parts = ("train", "val", "id", "near", "mid", "far")
    assert project.planned() == (
        {f"Reading the structures of {alloys}", f"Splitting {alloys}", *STRATA, *COSTS}
        | {f"Caching the atom features of {alloys}, {part}, shard 0 of 1" for part in parts}
        | of_fit("bll-mse", "alloys, mptrj")
        | of_fit("bll-pretrained", "alloys, mptrj")
        | {job for job in AFTER_METRICS | SURFACES if "molecules" not in job}
    )
    assert project.why() == [
        f"the content of results/cache/datasets/{alloys}/raw changed: 1 data set, 1 splitting, 6 feature caches, "
        "2 fits, 2 predictions, 2 calibrations, 2 measurements, 1 merging, 1 comparison, 4 figures, 3 tables, 1 ledger"
    ]
    command = [sys.executable, "-m", "forceuq", "audit", "results/tiny"]
    done = subprocess.run(
        command, cwd=project.folder, env=project.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    altered = done.stdout[done.stdout.index("altered") :].split("\n\n")[0]
    assert f"cache/datasets/{raw.parent.name}/raw" in altered
    # As it was: nothing is to be done again, though it is newer now.
    raw.write_bytes(content)
    assert project.planned() == set()


def test_a_fresh_clone_over_existing_results(project: Project, tmp_path: Path) -> None:
    clone = copy_project(tmp_path / "clone")
    # A clone's files are new, and in no particular order.
    for path in clone.folder.rglob("*"):
        path.touch()
    for name in ("results", ".snakemake"):
        shutil.copytree(project.folder / name, clone.folder / name)
    assert clone.planned() == set()
    clone.edit("forceuq/figures/shift.py", "\ndef ", "\ndef _added():\n    return 1\n\n\ndef ")
    assert clone.planned() == {"Drawing the metrics as the distribution shifts"} | LEDGER
    # Without Snakemake's notes of the earlier run nothing runs either, and no change is seen: the audit sees those.
    shutil.rmtree(clone.folder / ".snakemake")
    assert clone.planned() == set()


def test_copied_without_time_stamps(project: Project, tmp_path: Path) -> None:
    copied = Project(tmp_path / "copied", tmp_path / "copied" / "tiny.yaml")
    shutil.copytree(project.folder, copied.folder, copy_function=shutil.copyfile)
    assert copied.planned() == set()
