"""The profile for Slurm: beside the local one, with a site's file, and what its rules ask for."""

import importlib.util
import inspect
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from snakemake.profiles import ProfileConfigFileParser
from snakemake.scheduling.job_scheduler import JobScheduler

from forceuq.cluster.sessions import session_name

ROOT = Path(__file__).parents[2]
# What decides which jobs run again, and what a failed run leaves.
SHARED = ("rerun-triggers", "max-checksum-file-size", "rerun-incomplete", "keep-going", "show-failed-logs")
# Added to a Snakefile: a line for each job.
WRITES_REQUESTS = """

import atexit


def write_requests():
    with open("{seen}", "w") as file:
        for job in workflow.dag.jobs:
            asked = [job.resources.get(name, "") for name in ("cpus_per_task", "gpu", "gpu_model")]
            print(job.rule.name, job.threads, *asked, file=file)


atexit.register(write_requests)
"""


def profile(folder: Path, name: str = "slurm") -> dict:
    """Return a profile's settings as Snakemake reads them."""
    file = io.StringIO((folder / name / "config.yaml").read_text(encoding="utf-8"))
    file.name = str(folder / name / "config.yaml")
    return dict(ProfileConfigFileParser().parse(file))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with both profiles and no site's file, as the working directory."""
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm", ignore=shutil.ignore_patterns("site.yaml"))
    shutil.copytree(ROOT / "profiles/default", tmp_path / "default")
    monkeypatch.chdir(tmp_path)
    # The profile sets variables for the jobs: in this process, put back afterwards.
    before = dict(os.environ)
    yield tmp_path
    os.environ.clear()
    os.environ.update(before)


def test_both_profiles_run_the_same_jobs_again(folder):
    local, slurm = profile(folder, "default"), profile(folder)
    for key in SHARED:
        assert slurm[key] == local[key], key


def test_without_a_sites_file(folder):
    settings = profile(folder)
    assert settings["executor"] == "slurm"
    assert int(settings["jobs"]) > 0
    assert settings["slurm-partition-config"] == "slurm/partitions.yaml"
    assert settings["slurm-jobname-prefix"] == session_name()
    # Preempted and requeued jobs are seen as waiting by squeue only.
    assert (settings["slurm-status-command"], settings["slurm-requeue"]) == ("squeue", "True")
    assert "slurm-no-requeue" not in settings
    assert not [value for value in settings["default-resources"] if "account" in value]


def test_a_sites_file_is_taken_in(folder, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    site = {
        "account": "lab",
        "qos": "long",
        "partitions": {"batch": {"max_gpu": 4}},
        "status_command": "sacct",
        "accounting": False,
        "max_jobs": 7,
        "retries": 9,
        "array_rules": ["features", "metrics"],
        "environment": {"NCCL_DEBUG": "WARN"},
    }
    (folder / "slurm/site.yaml").write_text(yaml.safe_dump(site))
    settings = profile(folder)
    assert "slurm_account=lab" in settings["default-resources"]
    assert (settings["jobs"], settings["retries"], settings["slurm-qos"]) == ("7", "9", "long")
    assert settings["slurm-partition-config"] == "slurm/site.yaml"
    assert (settings["slurm-status-command"], settings["slurm-no-requeue"]) == ("sacct", "True")
    assert "slurm-requeue" not in settings
    assert settings["slurm-efficiency-report"] == "False"
    assert settings["slurm-array-jobs"] == "features,metrics"
    assert os.environ["NCCL_DEBUG"] == "WARN"
    assert os.environ["XDG_CACHE_HOME"] == str(folder / ".cache")


def test_a_wrong_sites_file_stops_with_its_name(folder):
    (folder / "slurm/site.yaml").write_text("acount: lab")
    with pytest.raises(Exception, match=r"slurm/site.yaml: acount"):
        profile(folder)


def test_every_setting_has_a_reason():
    lines = (ROOT / "slurm/config.yaml").read_text().splitlines()
    settings = [
        i for i, line in enumerate(lines) if re.match(r"slurm-|jobs|retries|latency|local-cores|max-jobs", line)
    ]
    # A comment above it or above the lines that it stands under.
    assert all(any(lines[j].startswith("#") for j in range(i - 4, i)) for i in settings)


@pytest.mark.workflow
def test_the_page_of_requests_is_what_dry_runs_print(tmp_path):
    spec = importlib.util.spec_from_file_location("slurm_resources", ROOT / "docs/slurm_resources.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = module.page()
    assert (ROOT / "docs/slurm-resources.md").read_text(encoding="utf-8") == text, "run `make slurm-table`"
    # Whatever runs the backbone or trains asks for a GPU there, and nothing else does.
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    on_gpus = {(rule, name) for rule, _, names, _, _, gpus, *_ in rows if gpus == "1" for name in names.split(", ")}
    assert ("fit", "lora") in on_gpus
    assert ("predict", "lora") in on_gpus
    assert ("features", "train") in on_gpus
    assert not {rule for rule, _ in on_gpus} - {"features", "fit", "predict"}


@pytest.mark.workflow
def test_the_demo_asks_for_no_gpu_and_one_core_a_job(tmp_path):
    for name in ("Snakefile", "rules", "workflow_scripts", "forceuq", "config", "envs", "profiles", "slurm"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (tmp_path / "slurm/site.yaml").write_text("gpu_model: a100")
    seen = tmp_path / "seen"
    # Written where the workflow has every job's request; a dry run hides it behind the messages.
    with (tmp_path / "Snakefile").open("a") as file:
        file.write(WRITES_REQUESTS.format(seen=seen))
    subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "--cores", "64", "--quiet", "all"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=True,
    )
    lines = seen.read_text().splitlines()
    assert len(lines) > 200
    # What runs on the login node asks for nothing but its one thread.
    other = [line for line in lines if line.split()[1:] not in (["1"], ["1", "1", "0"])]
    assert other == []


def test_what_the_start_of_a_run_switches_off_is_still_what_snakemake_looks_at():
    # rules/cluster.smk; under another name the passes of the scheduler would multiply again, and nothing would say so.
    assert "if self.job_rate_limiter is not None" in inspect.getsource(JobScheduler.schedule)
    assert "job_rate_limiter = None" in (ROOT / "rules/cluster.smk").read_text()
