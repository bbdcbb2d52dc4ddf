"""Runs that go on at once in one results folder: the caches are made by one, and each run goes on once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, TINY, Project, copy_project

pytestmark = [pytest.mark.workflow]
# Each cache takes a second, and says in a list of its own that it was made.
SNAKEFILE = """
RUN = config["run"]
rule all:
    default_target: True
    input: f"results/{RUN}/result"
rule caches:
    input: expand("results/cache/{n}", n=range(3))
rule cache:
    output: "results/cache/{n}"
    shell: "sleep 1; echo {wildcards.n} >> results/made; echo {wildcards.n} > {output}"
rule result:
    input: rules.caches.input
    output: f"results/{RUN}/result"
    shell: "cat {input} > {output}"
"""


class Runs:
    """A folder with a workflow of a few seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "Snakefile").write_text(SNAKEFILE)
        for name in ("a", "b"):
            (folder / f"{name}.yaml").write_text(f"run: {name}\n")

    def start(self, name: str) -> subprocess.Popen[str]:
        """Start a run in a process group of its own."""
        script = ROOT / "workflow_scripts/run_together.py"
        command = [sys.executable, str(script), "--cores", "2", "--rerun-incomplete", "--configfile", f"{name}.yaml"]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, "XDG_CACHE_HOME": str(self.folder / ".cache")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, path: str, process: subprocess.Popen[str]) -> None:
        """Wait until a file is there."""
        deadline = time.monotonic() + 300
        while not (self.folder / path).exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, f"{path} was never made"
            time.sleep(0.05)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def test_two_runs_at_once_make_the_caches_once(runs: Runs) -> None:
    processes = [runs.start("a"), runs.start("b")]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert sorted((runs.folder / "results/made").read_text().split()) == ["0", "1", "2"]
    results = [(runs.folder / f"results/{name}/result").read_text() for name in ("a", "b")]
    assert results == ["0\n1\n2\n"] * 2


def test_one_run_is_not_started_twice_and_a_killed_one_leaves_no_lock(runs: Runs) -> None:
    first = runs.start("a")
    runs.wait_for("results/made", first)
    second = runs.start("a")
    assert "The run 'a' is going on already" in second.communicate()[0]
    assert second.returncode == 1
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    again = runs.start("a")
    said = again.communicate()[0]
    assert again.returncode == 0, said
    assert (runs.folder / "results/a/result").read_text() == "0\n1\n2\n"


@pytest.mark.slow
def test_two_real_runs_share_one_cache(tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    config = {
        **TINY,
        "datasets": {**TINY["datasets"], **dict.fromkeys(("alloys", "metals", "ternaries"))},
        "methods": {**TINY["methods"], "bll-mse": None},
        "figures": {"surface": None},
    }
    overlays = []
    for name in ("one", "two"):
        overlays.append(project.folder / f"{name}.yaml")
        overlays[-1].write_text(yaml.safe_dump({**config, "run": name}))
    processes = [start(project, overlay) for overlay in overlays]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    results = project.folder / "results"
    # A job that ran twice would have set its first record aside.
    assert list(results.glob("cache/records/features/**/*.json"))
    assert not list(results.glob("cache/records/.superseded/*"))
    assert metrics_of(results / "one") == metrics_of(results / "two")


def start(project: Project, overlay: Path) -> subprocess.Popen[str]:
    script = str(project.folder / "workflow_scripts/run_together.py")
    command = [sys.executable, script, "--cores", "1", "--configfile", "config/demo.yaml", str(overlay)]
    return subprocess.Popen(
        command,
        cwd=project.folder,
        env=project.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def metrics_of(run: Path) -> bytes:
    return (run / "metrics.parquet").read_bytes()
