"""Runs that go on at once in one results folder: the caches are made by one, and each run goes on once."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
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
# A cache that is made when it is told to; Ctrl-C makes it clean up.
HELD = """
rule all:
    default_target: True
    input: "results/result"
rule caches:
    input: "results/cache"
rule cache:
    output: "results/cache"
    shell: "trap 'sleep 2; touch done; exit 1' INT; touch started; until [ -e go ]; do sleep 1; done; touch {output}"
rule result:
    input: "results/cache"
    output: touch("results/result")
"""
# One of two caches cannot be made in the first attempt, nor without the lock.
FAILING = """
rule all:
    default_target: True
    input: "results/good", "results/bad"
rule caches:
    input: "results/cache/good", "results/cache/bad"
rule good_cache:
    output: touch("results/cache/good")
rule bad_cache:
    output: touch("results/cache/bad")
    shell: "flock --nonblock results/.locks/cache.lock echo free >> locks || echo held >> locks; [ -e served ]"
rule result:
    input: "results/cache/{n}"
    output: touch("results/{n}")
"""


class Runs:
    """A folder with a workflow of a few seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        self.workflow(SNAKEFILE)
        for name in ("a", "b"):
            (folder / f"{name}.yaml").write_text(f"run: {name}\n")

    def workflow(self, text: str) -> None:
        """Write another workflow."""
        (self.folder / "Snakefile").write_text(text)

    def start(self, name: str, *options: str) -> subprocess.Popen[str]:
        """Start a run in a process group of its own."""
        script = ROOT / "workflow_scripts/run_together.py"
        options = ("--cores", "2", "--rerun-incomplete", *options, "--configfile", f"{name}.yaml")
        command = [sys.executable, str(script), *options]
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, "XDG_CACHE_HOME": str(self.folder / ".cache")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def wait_for(self, path: str, process: subprocess.Popen[str]) -> None:
        """Wait until a file is there."""
        deadline = time.monotonic() + 300
        while not (self.folder / path).exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, f"{path} was never made"
            time.sleep(0.05)


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    # Runs start as from a terminal, also where the tests are in the background or under nohup, which ignore these.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    for number, handler in before.items():
        if handler == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    runs = Runs(tmp_path)
    yield runs
    for number, handler in before.items():
        signal.signal(number, handler)
    for process in runs.started:  # what a failed test has left
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_is_held_as_long_as_snakemake_goes_on(runs: Runs, number: signal.Signals) -> None:
    runs.workflow(HELD)
    first = runs.start("a")
    runs.wait_for("started", first)
    os.kill(first.pid, number)
    second = runs.start("a")
    assert "The run 'a' is going on already" in second.communicate(timeout=120)[0]
    assert second.returncode == 1
    (runs.folder / "go").touch()
    first.communicate(timeout=120)  # until Snakemake has closed its output
    assert first.returncode == (-number if number == signal.SIGKILL else 1)
    assert (runs.folder / "results/cache").exists()
    assert not (runs.folder / "results/result").exists()
    again = runs.start("a")
    said = again.communicate()[0]
    assert again.returncode == 0, said


def test_a_hangup_of_the_wrapper_ends_snakemake(runs: Runs) -> None:
    runs.workflow(HELD)
    first = runs.start("a")
    runs.wait_for("started", first)
    (snakemake,) = psutil.Process(first.pid).children()
    os.kill(first.pid, signal.SIGHUP)
    assert first.wait(timeout=120) == 128 + signal.SIGHUP
    assert not snakemake.is_running()


def test_ctrl_c_waits_for_snakemake_to_clean_up(runs: Runs) -> None:
    runs.workflow(HELD)
    first = runs.start("a")
    runs.wait_for("started", first)
    os.killpg(first.pid, signal.SIGINT)
    assert first.wait(timeout=120) == 1
    assert (runs.folder / "done").exists()
    said = first.communicate()[0]
    assert "Traceback" not in said
    assert not (runs.folder / "results/cache").exists()


def test_a_cache_that_fails_stops_only_what_needs_it(runs: Runs) -> None:
    runs.workflow(FAILING)
    first = runs.start("a", "--keep-going")
    said = first.communicate()[0]
    assert first.returncode == 1, said
    assert (runs.folder / "results/good").exists(), said
    assert not (runs.folder / "results/bad").exists()
    # Tried again in the second pass, where no other run may make it meanwhile.
    assert (runs.folder / "locks").read_text().split() == ["held", "held"]
    (runs.folder / "served").touch()
    again = runs.start("a", "--keep-going")
    said = again.communicate()[0]
    assert again.returncode == 0, said
    assert (runs.folder / "results/bad").exists()


def test_a_cache_that_the_second_try_makes_is_no_failure(runs: Runs) -> None:
    runs.workflow(FAILING.replace("[ -e served ]", "[ $(wc -l < locks) -gt 1 ]"))
    run = runs.start("a", "--keep-going")
    said = run.communicate()[0]
    assert run.returncode == 0, said
    assert (runs.folder / "results/bad").exists()


def test_a_workflow_that_cannot_be_read_is_not_tried_again(runs: Runs) -> None:
    runs.workflow("raise WorkflowError('unknown key')\n" + FAILING)
    first = runs.start("a")
    said = first.communicate()[0]
    assert first.returncode == 1
    assert said.count("unknown key") == 1, said


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        ("", "with keys at top level"),
        ("- run\n", "with keys at top level"),
        ("run: c\n  seeds: [\n", "line 2"),
    ],
)
@pytest.mark.parametrize("script", ["run_together.py", "unlock_stale.py"])
def test_a_configuration_that_cannot_be_read_is_named(
    tmp_path: Path, script: str, content: str | None, why: str
) -> None:
    (tmp_path / ".snakemake/locks").mkdir(parents=True)
    (tmp_path / ".snakemake/locks/0.input.lock").touch()
    (tmp_path / "good.yaml").write_text("run: a\n")
    if content is not None:
        (tmp_path / "bad.yaml").write_text(content)
    command = [sys.executable, str(ROOT / "workflow_scripts" / script), "--configfile", "good.yaml", "bad.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("bad.yaml is not a configuration")
    assert why in line


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
