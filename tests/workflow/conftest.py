"""A copy of the project in which a tiny benchmark has been run."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

ROOT = Path(__file__).parents[2]
COPIED = ("Snakefile", "rules", "workflow_scripts", "forceuq", "rerun_reasons", "config", "profiles", "envs")
TINY = {
    "run": "tiny",
    "seeds": [0],
    "datasets": {
        "molecules": {
            "generate": {
                "kind": "gfn2_rmd17",
                "options": {
                    "molecules": {"methylamine": "CN", "methanol": "CO"},
                    "train_frames": 30,
                    "test_frames": 10,
                },
            },
            "options": {"molecules": ["methylamine", "methanol"], "training_molecules": ["methylamine"]},
        },
        "alloys": {
            "generate": {
                "options": {"pairs": [["Cu", "Au"], ["Ni", "Pt"]], "materials_per_pair": 8, "frames": 8},
            },
            "options": {"fractions": [0.4, 0.2, 0.4]},
        },
        "metals": {
            "generate": {
                "options": {"metals": ["Ag"], "train_frames": 1, "test_frames": 1, "equilibration": 3, "interval": 1},
            },
        },
        "ternaries": {"generate": {"options": {"materials": 2, "frames": 2, "steps": 4, "databases": 1}}},
    },
    # Two methods, both on cached features, are enough for what runs when; the others have a test of their own.
    "methods": {
        **dict.fromkeys(yaml.safe_load((ROOT / "config/demo.yaml").read_text())["methods"]),
        "bll-mse": {"options": {"max_epochs": 3}},
        "bll-pretrained": {"seeds": None},
    },
    "bootstrap_draws": 100,
    "figures": {"surface": {"points": 5}},
}


@dataclass
class Project:
    """A copy of the project, its own results and its own library."""

    folder: Path
    config: Path

    def snakemake(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run Snakemake on the tiny configuration and return what it printed."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            pytest.fail(f"snakemake {' '.join(arguments)} failed:\n{done.stdout}\n{done.stderr}")
        return done

    def command(self, *arguments: str) -> list[str]:
        """Return the command line."""
        config = ["--configfile", "config/demo.yaml", str(self.config)]
        return [sys.executable, "-m", "snakemake", "--cores", "2", *arguments, *config]

    def environment(self) -> dict[str, str]:
        """Return the environment in which the copy's library is the one that is imported."""
        return {**os.environ, "PYTHONPATH": str(self.folder), "XDG_CACHE_HOME": str(self.folder / ".cache")}

    def would_run(self, *arguments: str) -> dict[str, int]:
        """Return rule -> number of jobs that a dry run names, without the target rule."""
        printed = self.snakemake("--dry-run", *arguments)
        text = printed.stdout + printed.stderr
        if "Nothing to be done" in text:
            return {}
        stats = text[text.index("Job stats:") :]
        jobs = {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", stats, re.MULTILINE)}
        return {name: n for name, n in jobs.items() if name not in ("total", "all")}

    def planned(self) -> set[str]:
        """Return the messages of the jobs, alone or in groups, that a dry run names: what each would do to what."""
        printed = self.snakemake("--dry-run")
        return set(re.findall(r"^ *Job \d+: (.+)$", printed.stdout + printed.stderr, re.MULTILINE))

    def why(self) -> list[str]:
        """Return the lines that say what would run and why."""
        command = [sys.executable, "-m", "rerun_reasons", *self.command()[5:]]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def configure(self, **changes: object) -> None:
        """Lay changes over the tiny configuration, keys joined by dots: ``methods.bll-mse.seeds``."""
        config = yaml.safe_load(self.config.read_text())
        for path, value in changes.items():
            *above, last = path.split(".")
            here = config
            for key in above:
                here = here.setdefault(key, {})
            here[last] = value
        self.config.write_text(yaml.safe_dump(config))

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace a text that must be there."""
        path = self.folder / file
        text = path.read_text()
        assert old in text, f"{file} has no {old!r}"
        path.write_text(text.replace(old, new, 1))


def copy_project(folder: Path) -> Project:
    """Copy the project's code into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump(TINY))
    return Project(folder, config)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose tiny run is finished. Tests that change it work on a copy: see ``project``.

    It is made once for all of pytest-xdist's workers, by the first that comes; each has a copy, since runs lock it.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    with FileLock(shared.with_suffix(".lock")):
        if not (shared / "finished").exists():
            shutil.rmtree(shared, ignore_errors=True)
            copy_project(shared).snakemake()
            (shared / "finished").touch()
    folder = tmp_path_factory.mktemp("project") / "project"
    shutil.copytree(shared, folder)
    return Project(folder, folder / "tiny.yaml")


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished project, with its results and time stamps, to be changed."""
    folder = tmp_path / "project"
    shutil.copytree(finished.folder, folder)
    return Project(folder, folder / "tiny.yaml")
