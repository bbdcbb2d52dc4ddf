"""What is generated is up to date, and every shipped configuration can be planned without data."""

import importlib.util
import re
import subprocess
import sys

import pytest
from conftest import ROOT, copy_project


def test_conda_environments_are_those_of_the_lock():
    spec = importlib.util.spec_from_file_location("conda_from_lock", ROOT / "envs/conda_from_lock.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for device in ("cpu", "cuda"):
        text = (ROOT / f"envs/conda-{device}.yaml").read_text()
        assert text == module.conda_environment(device), "run `make envs`"
        assert (ROOT / f"envs/torch-{device}.txt").read_text() == module.torch_overlay(device), "run `make envs`"


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_locks_pin_exact_versions(version):
    lines = (ROOT / f"envs/lock-py{version}.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9._-]+==[^ ;]+", line) for line in pins)
    named = {line.partition("==")[0] for line in pins}
    assert {"torch", "orb-models", "snakemake", "numpy", "tblite", "rdkit"} <= named
    assert ("orb-models==0.5.5" in pins) == (version == "3.11")


@pytest.mark.workflow
@pytest.mark.parametrize(
    "configs",
    [
        ["demo"],
        ["rmd17"],
        ["rmd17", "overlays/forceuq-small"],
        ["rmd17", "overlays/forceuq-small", "overlays/rmd17-two-cores"],
        ["mptrj"],
        ["mptrj", "overlays/forceuq-small"],
        ["paper"],
        ["backbone-small"],
    ],
    ids="+".join,
)
def test_dry_run_needs_no_data(tmp_path, configs):
    project = copy_project(tmp_path)
    files = [f"config/{name}.yaml" for name in configs]
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "--configfile", *files],
        cwd=tmp_path,
        env=project.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^total +\d+$", done.stdout + done.stderr, re.MULTILINE)
    assert not (tmp_path / "results").exists() or not any((tmp_path / "results").rglob("*.parquet"))
