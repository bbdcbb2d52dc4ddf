"""A real run as an archive, and the run that its configuration gives elsewhere."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import Project, copy_project

pytestmark = [pytest.mark.workflow, pytest.mark.slow]


def forceuq(project: Project, *arguments: str) -> str:
    """Run the forceuq command in a project and return what it printed."""
    command = [sys.executable, "-m", "forceuq", *arguments]
    done = subprocess.run(
        command, cwd=project.folder, env=project.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_bundles_configuration_reproduces_the_metrics_bit_for_bit(finished: Project, tmp_path: Path) -> None:
    archive = tmp_path / "tiny.zip"
    forceuq(finished, "bundle", "results/tiny", "-o", str(archive), "--predictions")
    elsewhere = copy_project(tmp_path / "elsewhere")
    assert "tiny: verified." in forceuq(elsewhere, "verify", str(archive))
    with zipfile.ZipFile(archive) as opened:
        elsewhere.config.write_bytes(opened.read("configuration.yaml"))
        wanted = opened.read("results/tiny/metrics.parquet")
    # From nothing: raw data, features and fits too. The configuration is whole; nothing is laid under it.
    target = "results/tiny/metrics.parquet"
    command = [sys.executable, "-m", "snakemake", "--cores", "2", target, "--configfile", str(elsewhere.config)]
    done = subprocess.run(
        command, cwd=elsewhere.folder, env=elsewhere.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (elsewhere.folder / target).read_bytes() == wanted
