"""A real Slurm for the tests, and a project whose local run is the reference of what a cluster must give.

FORCEUQ_TEST_SLURM=install installs Debian's packages (as root). Without Slurm the tests are skipped, but in CI
(CI=true) they fail: there they must run. The long ones, with faults, run with ``-m slurm_faults`` only.
"""

import getpass
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cluster as slurm
import pytest
from project import Project, Run, copy_project, copy_with_results


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long tests out unless they are asked for."""
    if "slurm_faults" in config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("slurm_faults")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


def _require_slurm() -> None:
    if slurm.missing() and os.environ.get("FORCEUQ_TEST_SLURM") == "install":
        slurm.install()
    if lacking := slurm.missing():
        reason = f"no {', '.join(lacking)}: install Slurm, or set FORCEUQ_TEST_SLURM=install as root"
        if os.environ.get("CI") == "true":
            pytest.fail(f"in CI these tests must run; {reason}")
        pytest.skip(reason)


def _started(accounting: bool) -> Iterator[slurm.Cluster]:
    _require_slurm()
    # Not pytest's folder, whose name is too long for sockets.
    folder = Path(tempfile.mkdtemp(prefix="fq", dir="/tmp"))
    cluster = slurm.Cluster(folder / "s", accounting)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def started_cluster() -> Iterator[slurm.Cluster]:
    """A cluster with accounting. Tests use ``cluster``."""
    yield from _started(accounting=True)


@pytest.fixture(scope="module")
def cluster_without_accounting() -> Iterator[slurm.Cluster]:
    """A cluster without accounting."""
    yield from _started(accounting=False)


@pytest.fixture
def cluster(started_cluster: slurm.Cluster) -> Iterator[slurm.Cluster]:
    """The cluster with accounting, all nodes up and idle."""
    yield started_cluster
    Run.kill_all()
    started_cluster.run("scancel", "--user", getpass.getuser(), check=False)
    started_cluster.start()
    for node in slurm.NODES:
        if not started_cluster.node_state(node).startswith(("idle", "mixed", "alloc", "compl")):
            started_cluster.resume(node)
    slurm.wait_until(lambda: not started_cluster.run("squeue", "-h"), 60, "jobs of the last test did not end")


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose small run is finished, on this machine and without Slurm."""
    if ready := os.environ.get("FORCEUQ_TEST_SLURM_REFERENCE"):
        return Project(Path(ready))
    project = copy_project(tmp_path_factory.mktemp("reference"))
    project.local()
    return project


@pytest.fixture
def project(reference: Project, tmp_path: Path) -> Project:
    """A copy of the finished project, with its caches; tests remove what is to be done again."""
    return copy_with_results(reference, tmp_path / "project")
