"""Jobs that go on after their Snakemake was killed: nothing starts that would write their files a second time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = [pytest.mark.workflow]
SNAKEFILE = """
rule all:
    default_target: True
    input: "results/result"
rule caches:
    input: "results/result"
rule result:
    output: "results/result"
    script: "job.py"
"""
# Says its process number, and ends when it is told to.
JOB = """
import os, time
from pathlib import Path
Path("job.pid").write_text(f"{os.getpid()}\\n")
while not Path("go").exists():
    time.sleep(0.2)
Path(snakemake.output[0]).touch()
"""


class Workflow:
    """A folder with a workflow of one job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "XDG_CACHE_HOME": str(folder / ".cache")}
        (folder / "Snakefile").write_text(SNAKEFILE)
        (folder / "job.py").write_text(JOB)
        (folder / "a.yaml").write_text("run: a\n")

    def start(self) -> subprocess.Popen[bytes]:
        """Start plain Snakemake, and return when its job has begun."""
        command = [sys.executable, "-m", "snakemake", "--cores", "1", "--configfile", "a.yaml"]
        process = subprocess.Popen(command, cwd=self.folder, env=self.environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while not self.job():
            assert process.poll() is None
            assert time.monotonic() < deadline, "the job never began"
            time.sleep(0.05)
        return process

    def job(self) -> str:
        """Return the job's process number, once there is one."""
        file = self.folder / "job.pid"
        text = file.read_text() if file.exists() else ""
        return text.strip() if text.endswith("\n") else ""

    def script(self, name: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run a workflow script."""
        command = [sys.executable, str(ROOT / "workflow_scripts" / name), *options, "--configfile", "a.yaml"]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False, timeout=120
        )


@pytest.fixture
def workflow(tmp_path: Path) -> Iterator[Workflow]:
    workflow = Workflow(tmp_path)
    yield workflow
    (tmp_path / "go").touch()


def test_a_job_that_outlives_its_snakemake_is_not_started_twice(workflow: Workflow) -> None:
    process = workflow.start()
    refused = workflow.script("unlock_stale.py")
    assert f"Another run is going on in {workflow.folder} (process {process.pid})" in refused.stderr
    process.kill()
    process.wait()
    job = workflow.job()
    for refused in (
        workflow.script("unlock_stale.py"),
        workflow.script("run_together.py", "--cores", "1", "--rerun-incomplete"),
    ):
        assert refused.returncode == 1
        assert f"jobs of it go on (process {job})" in refused.stderr
        assert f"kill {job}" in refused.stderr
    assert list((workflow.folder / ".snakemake/locks").iterdir())
    os.kill(int(job), signal.SIGTERM)
    (workflow.folder / "go").touch()
    done = workflow.script("unlock_stale.py")
    assert done.returncode == 0, done.stderr
    done = workflow.script("run_together.py", "--cores", "1", "--rerun-incomplete")
    assert done.returncode == 0, done.stderr


def test_jobs_of_a_run_that_is_alive_are_not_left_over(workflow: Workflow) -> None:
    process = workflow.start()
    code = "from pathlib import Path; from left_over import refuse_left_over; refuse_left_over(Path.cwd())"
    environment = {**workflow.environment, "PYTHONPATH": str(ROOT / "workflow_scripts")}
    subprocess.run([sys.executable, "-c", code], cwd=workflow.folder, env=environment, check=True)
    (workflow.folder / "go").touch()
    assert process.wait() == 0
