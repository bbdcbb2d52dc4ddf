"""Finished runs in miniature, to be bundled and compared."""

import shutil
from pathlib import Path

import pytest
from toy_runs import Toy


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A results folder with two finished runs, not to be changed: b has another rate, and its NLL is shifted."""
    made = Toy(tmp_path_factory.mktemp("toy") / "project")
    made.caches()
    made.run("a")
    made.run("b", rate=2e-3, shift=0.5)
    return made


@pytest.fixture
def toy(finished: Toy, tmp_path: Path) -> Toy:
    """A copy of the finished runs, to be changed."""
    shutil.copytree(finished.project, tmp_path / "project")
    return Toy(tmp_path / "project")
