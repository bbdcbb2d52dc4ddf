"""The small configuration through ``snakemake --profile slurm`` on a real Slurm, in every CI run."""

import re
import shutil

import pandas as pd
import pytest
from project import METRICS

pytestmark = pytest.mark.slurm


def test_a_whole_run_gives_what_the_local_run_gives(cluster, project):
    shutil.rmtree(project.folder / "results")
    run = project.start(cluster)
    run.succeed()
    assert project.metrics() == project.wanted

    jobs = [job for job in cluster.jobs() if job.fields["WorkDir"] == str(project.folder)]
    assert {job.state for job in jobs} == {"COMPLETED"}
    assert {"generate", "read_structures", "features", "fit", "predict"} <= {job.rule for job in jobs}
    accounted = cluster.accounts("JobID,State,Partition,Account,ReqTRES,Timelimit,ExitCode")
    accounted = {row["JobID"]: row for row in accounted}
    for job in jobs:
        row = accounted[job.id]
        assert (row["State"], row["Partition"], row["Account"]) == ("COMPLETED", "cpu", "lab")
        asked = dict(item.split("=") for item in row["ReqTRES"].split(","))
        assert int(asked["cpu"]) == int(job.fields["NumCPUs"]) >= 1
        assert 500 <= job.memory_mb <= 8000
        assert row["Timelimit"] != "1-00:00:00"
        assert "gres/gpu" not in asked, "a job without a GPU must not wait for one"
    (report,) = (project.folder / "logs/slurm").glob("efficiency_report_*.csv")
    efficiency = pd.read_csv(report)
    assert {str(int(number)) for number in efficiency["JobID"].dropna()} >= {job.id for job in jobs}
    assert not project.would_run(cluster)


def test_a_gpu_job_gets_its_a100_and_stops_where_it_finds_none(cluster, project):
    project.forget_fits()
    project.configure(device="cuda", features={"device": "auto"})
    project.site(retries=0, gpu_model="a100")
    printed = project.start(cluster, METRICS).fail()
    (fit,) = project.jobs(cluster, "fit")
    (row,) = [row for row in cluster.accounts("JobID,Partition,AllocTRES") if row["JobID"] == fit.id]
    assert row["Partition"] == "gpu"
    assert "gres/gpu:a100=1" in row["AllocTRES"]
    assert fit.node in ("g1", "g2")
    (begun,) = project.journal("fit", "begin")
    assert re.fullmatch(r"begin cuda=\d", begun.what), "Slurm's choice of the GPU did not reach the job"
    assert "finds no GPU" in printed
    assert not list(project.folder.glob("results/small/fits/*/*/*/*/options.json"))


def test_without_accounting(cluster_without_accounting, project):
    project.forget_fits()
    project.site(accounting=False, account=None)
    project.start(cluster_without_accounting, METRICS).succeed()
    assert project.metrics() == project.wanted
