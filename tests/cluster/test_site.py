"""A site's own file, and the environment that its jobs get."""

import pytest
import yaml

from forceuq.cluster.requests import Limits
from forceuq.cluster.site import Site, job_environment, limits_of, load_site, minutes, partitions_of
from forceuq.errors import ConfigurationError

PARTITIONS = {
    "cpu": {"max_runtime": "1-12:00:00", "max_threads": 32, "max_mem_mb": 64_000},
    "gpu": {"max_runtime": 600, "max_threads": 64, "max_mem_mb": 256_000, "max_gpu": 4},
}


def test_no_file_is_the_defaults(tmp_path):
    assert load_site(tmp_path / "site.yaml") == Site()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("acount: lab", "acount: Extra inputs are not permitted; keys: account"),
        ("max_jobs: none", "max_jobs: Input should be a valid integer"),
        ("[1", "cannot be read"),
        ("status_command: qstat", "status_command"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path, text, said):
    file = tmp_path / "site.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match="site.yaml") as caught:
        load_site(file)
    assert said.partition(";")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("time", "expected"),
    [(90, 90), ("90", 90), ("2-00:00:00", 2880), ("1-12", 2160), ("1-00:30", 1470), ("10:30:59", 630), ("90:30", 90)],
)
def test_times_are_slurms(time, expected):
    assert minutes(time) == expected


@pytest.mark.parametrize("time", ["infinite", "1d", "-", ""])
def test_what_is_no_time_is_refused(time):
    with pytest.raises(ConfigurationError, match="max_runtime"):
        minutes(time)


def test_limits_are_those_of_the_partitions_that_take_the_job():
    partitions = Site(partitions=PARTITIONS).partitions
    assert limits_of(partitions, gpus=0) == Limits(256_000, 2160, 64)
    assert limits_of(partitions, gpus=1) == Limits(256_000, 600, 64)
    assert limits_of({}, gpus=1) == Limits()


def test_partitions_come_from_the_site_or_else_from_the_default_file(tmp_path):
    default = tmp_path / "partitions.yaml"
    default.write_text(yaml.safe_dump({"partitions": {"batch": {"max_gpu": 2}}}))
    assert list(partitions_of(Site(), default)) == ["batch"]
    assert list(partitions_of(Site(partitions=PARTITIONS), default)) == ["cpu", "gpu"]
    default.write_text("queues: {}")
    with pytest.raises(ConfigurationError, match=r"partitions.yaml: not a file of partitions"):
        partitions_of(Site(), default)


def test_jobs_write_no_caches_into_the_home_directory(tmp_path, monkeypatch):
    for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR", "TRITON_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_CACHE_PATH", "/mine")
    variables = job_environment(Site(cache="caches", scratch="/scratch/$SLURM_JOB_ID"), tmp_path)
    assert variables["XDG_CACHE_HOME"] == str(tmp_path / "caches")
    assert variables["TRITON_CACHE_DIR"] == str(tmp_path / "caches/triton")
    assert "CUDA_CACHE_PATH" not in variables
    assert variables["FORCEUQ_SCRATCH"] == "/scratch/$SLURM_JOB_ID"


def test_setup_lines_and_variables_reach_the_jobs(tmp_path):
    site = Site(setup=("export LOADED='a\nb'", "cd /"), environment={"OTHER": 3})
    variables = job_environment(site, tmp_path)
    assert (variables["LOADED"], variables["OTHER"]) == ("a\nb", "3")
    assert not {"PWD", "SHLVL", "_"} & set(variables)


def test_a_setup_line_that_fails_stops_the_run(tmp_path):
    with pytest.raises(ConfigurationError, match=r"setup: module-of-nowhere load cuda"):
        job_environment(Site(setup=("module-of-nowhere load cuda",)), tmp_path)
