"""A copy of the project with a small configuration, and Snakemake running in it on a cluster or locally."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import yaml
from cluster import Cluster, Job, wait_until

ROOT = Path(__file__).parents[2]
COPIED = ("Snakefile", "rules", "workflow_scripts", "forceuq", "config", "profiles", "slurm", "envs", "pyproject.toml")
TRIAL = {"faults.py": "faults.py", "method.py": "methods/trial.py", "backbone.py": "backbones/trial.py"}
DEMO = yaml.safe_load((ROOT / "config/demo.yaml").read_text())
# One data set, one method: what clusters do to jobs is the same for all.
SMALL = {
    "run": "small",
    "seeds": [0],
    "datasets": {
        **dict.fromkeys(DEMO["datasets"]),
        "alloys": {
            "generate": {"options": {"pairs": [["Cu", "Au"], ["Ni", "Pt"]], "materials_per_pair": 8, "frames": 8}},
            "options": {"fractions": [0.4, 0.2, 0.4]},
        },
    },
    "backbone": {"kind": "trial"},
    "methods": {
        **dict.fromkeys(DEMO["methods"]),
        "bll": {"kind": "trial", "label": "BLL", "options": {"projection": "mse", "max_epochs": 12}},
    },
    "bootstrap_draws": 100,
    "figures": {"surface": None},
}
# What a user of the test cluster writes; jobs of seconds are asked for sooner than those of hours.
SITE = {"account": "lab", "status_seconds": 3, "latency_seconds": 10, "retries": 2}
# For what takes a minute: a machine may be busy. A run that hangs is killed after it.
PATIENCE = 1800.0
METRICS = "results/small/metrics.parquet"


@dataclass(frozen=True)
class Event:
    """A line of the journal that jobs write (``trial/faults.py``)."""

    time: float
    job: str
    node: str
    stage: str
    what: str


class Run:
    """A Snakemake that runs in a login session of its own."""

    running: ClassVar[list["Run"]] = []

    def __init__(self, command: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.log = folder / f"snakemake-{len(list(folder.glob('snakemake-*.log')))}.log"
        with self.log.open("wb") as output:
            # Ctrl-C is ignored in what a shell runs in its background, and in what that starts.
            command = ["env", "--default-signal=INT", *command]
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        self.running.append(self)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Return the exit status."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(f"Snakemake did not end within {seconds:.0f} s:\n{self.text()}") from None

    def succeed(self, seconds: float = PATIENCE) -> str:
        """Wait for it to end well and return what it printed."""
        assert self.wait(seconds) == 0, self.text()
        return self.text()

    def fail(self, seconds: float = PATIENCE) -> str:
        """Wait for it to end badly and return what it printed."""
        assert self.wait(seconds) != 0, self.text()
        return self.text()

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """Kill the whole session, as a login node that goes down does."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @classmethod
    def kill_all(cls) -> None:
        """Kill those that a failed test has left."""
        for run in cls.running:
            if run.process.poll() is None:
                run.kill()
        cls.running.clear()

    def text(self) -> str:
        """Return what it has printed."""
        return self.log.read_text(errors="replace")


@dataclass(frozen=True)
class Project:
    """A copy of the project: its own library, results and faults.

    Args:
        folder: where.
        wanted: the metrics' file of the local run.
    """

    folder: Path
    wanted: bytes = b""

    def environment(self, cluster: Cluster | None) -> dict[str, str]:
        """Return the environment in which this copy's library is the one that is imported."""
        base = dict(os.environ) if cluster is None else cluster.environment()
        programs = f"{Path(sys.executable).parent}:{base['PATH']}"
        own = {"PYTHONPATH": str(self.folder), "XDG_CACHE_HOME": str(self.folder / ".cache"), "OMP_NUM_THREADS": "1"}
        return {**base, **own, "PATH": programs}

    def local(self, *arguments: str) -> None:
        """Run everything, or some targets, on this machine without a cluster."""
        Run(["snakemake", "--cores", "2", *arguments, *self._config()], self.folder, self.environment(None)).succeed()

    def start(self, cluster: Cluster, *arguments: str, config: tuple[str, ...] = ()) -> Run:
        """Start ``snakemake --profile slurm``."""
        command = ["snakemake", "--profile", "slurm", *arguments, *self._config(*config)]
        return Run(command, self.folder, self.environment(cluster))

    def together(self, cluster: Cluster, *arguments: str, config: tuple[str, ...] = ()) -> Run:
        """Start what ``make run PROFILE=slurm`` does: several runs may go on at once."""
        command = [sys.executable, "workflow_scripts/run_together.py", "--profile", "slurm", *arguments]
        return Run([*command, *self._config(*config)], self.folder, self.environment(cluster))

    @staticmethod
    def _config(*more: str) -> list[str]:
        return ["--configfile", "config/demo.yaml", "small.yaml", *more]

    def would_run(self, cluster: Cluster) -> bool:
        """Return whether a dry run finds anything to do."""
        return "Nothing to be done" not in self.start(cluster, "--dry-run").succeed()

    def configure(self, **changed: object) -> None:
        """Change the small configuration's top-level entries, one level deep."""
        file = self.folder / "small.yaml"
        config = yaml.safe_load(file.read_text())
        for key, value in changed.items():
            config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
        file.write_text(yaml.safe_dump(config))

    def site(self, **changed: object) -> None:
        """Write the site's file with some keys changed."""
        (self.folder / "slurm/site.yaml").write_text(yaml.safe_dump({**SITE, **changed}))

    def metrics(self, run: str = "small") -> bytes:
        """Return the metrics' file."""
        return (self.folder / f"results/{run}/metrics.parquet").read_bytes()

    def forget_fits(self) -> None:
        """Remove everything from the fits on: a run has about five jobs to do then."""
        shutil.rmtree(self.folder / "results/small")

    def jobs(self, cluster: Cluster, rule: str) -> list[Job]:
        """Return this project's Slurm jobs of a rule, the oldest first."""
        own = [job for job in cluster.jobs() if job.fields.get("WorkDir") == str(self.folder)]
        return [job for job in own if job.rule == rule]

    # -- faults

    def fault(self, stage: str, **wanted: object) -> None:
        """Say what a stage is to do."""
        (self.folder / "faults").mkdir(exist_ok=True)
        (self.folder / f"faults/{stage}.json").write_text(json.dumps(wanted))

    def hold(self, stage: str) -> None:
        """Make jobs of a stage wait until ``release``."""
        (self.folder / "faults").mkdir(exist_ok=True)
        (self.folder / f"faults/{stage}.hold").touch()

    def release(self, stage: str) -> None:
        """Let them go on."""
        (self.folder / f"faults/{stage}.hold").unlink(missing_ok=True)

    def journal(self, stage: str, what: str = "") -> list[Event]:
        """Return what jobs of a stage have noted."""
        try:
            lines = (self.folder / "faults/journal").read_text().splitlines()
        except FileNotFoundError:
            return []
        events = (Event(float(t), *rest) for t, *rest in (line.split(" ", 4) for line in lines))
        return [event for event in events if event.stage == stage and event.what.startswith(what)]

    def wait_for(self, run: Run, stage: str, what: str = "begin", count: int = 1, seconds: float = PATIENCE) -> Event:
        """Wait until jobs of a stage have noted something ``count`` times, and return the latest."""

        def there() -> bool:
            if run.process.poll() is not None:
                raise AssertionError(f"the run ended before {stage} noted {what!r}:\n{run.text()}")
            return len(self.journal(stage, what)) >= count

        wait_until(there, seconds, f"{stage} did not note {what!r}")
        return self.journal(stage, what)[-1]


def copy_project(folder: Path) -> Project:
    """Copy the code, the files that make jobs fail, and the small configuration into a folder."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    for source, target in TRIAL.items():
        shutil.copy(Path(__file__).parent / "trial" / source, folder / "forceuq" / target)
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    (folder / "slurm/site.yaml").write_text(yaml.safe_dump(SITE))
    return Project(folder)


def copy_with_results(project: Project, folder: Path) -> Project:
    """Copy a project with its results and time stamps."""
    shutil.copytree(project.folder, folder, symlinks=True, ignore=shutil.ignore_patterns("faults", "snakemake-*.log"))
    return Project(folder, project.metrics())
