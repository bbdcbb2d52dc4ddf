"""What sinfo, scontrol and sacctmgr printed on clusters, and the site file that is proposed from it."""

import subprocess

import pytest
import yaml

from forceuq.cluster.probe import ask, faults_of, parse_sinfo, probe, propose
from forceuq.cluster.site import Partition, Site
from forceuq.errors import ClusterError

# Slurm 22.05.8, two partitions of two nodes each.
SMALL = "cpu*|up|1-00:00:00|8|32000|(null)\ngpu|up|1-00:00:00|8|32000|gpu:a100:4\n"
# A partition with two kinds of nodes (a row each), GPUs with their sockets, without a model, without a limit, and down.
MIXED = """\
main*|up|2-00:00:00|64+|256000|(null)
main*|up|2-00:00:00|128|1031000+|(null)
accel|up|12:00:00|48|380000|gpu:v100:4(S:0-1)
accel|up|12:00:00|64|512000|gpu:nvidia_a100-sxm4-40gb:8(S:0-7),shard:a100:16
old|up|infinite|16|64000|gpu:2
night|down|1-00:00:00|16|64000|gpu:h100:8
"""
CONFIGURATION = """\
Configuration data as of 2026-11-25T14:10:00
AccountingStorageType   = {storage}
KillWait                = 30 sec
MinJobAge               = {age} sec
SlurmctldHost[0]        = login
"""


def answers(sinfo=SMALL, storage="accounting_storage/slurmdbd", age=300, accounts="lab\nlab\nother\n"):
    """Return a stand-in for the scheduler's programs."""
    printed = {
        "sinfo": sinfo,
        "scontrol": CONFIGURATION.format(storage=storage, age=age),
        "sacctmgr": accounts,
    }
    return lambda *command: printed[command[0]]


def test_a_small_cluster_is_proposed_as_it_is():
    text = propose(probe(answers()))
    site = Site.model_validate(yaml.safe_load(text))
    assert (site.account, site.gpu_model, site.accounting, site.status_command) == ("lab", "a100", True, "squeue")
    assert "# Or: other." in text
    assert site.partitions == {
        "cpu": Partition(max_runtime="1-00:00:00", max_threads=8, max_mem_mb=32000),
        "gpu": Partition(
            max_runtime="1-00:00:00", max_threads=8, max_mem_mb=32000, max_gpu=4, available_gpu_models=["a100"]
        ),
    }
    assert faults_of(site, probe(answers())) == []


def test_nodes_of_several_kinds():
    partitions, default, gpus = parse_sinfo(MIXED)
    assert default == "main"
    assert list(partitions) == ["main", "accel", "old"]
    assert (partitions["main"].max_threads, partitions["main"].max_mem_mb) == (128, 1_031_000)
    assert (partitions["accel"].max_gpu, partitions["old"].max_gpu) == (8, 2)
    assert (partitions["old"].max_runtime, partitions["old"].available_gpu_models) == (None, None)
    assert gpus == {"v100": 4, "nvidia_a100-sxm4-40gb": 8}


def test_an_a100_is_preferred_and_the_others_are_named():
    text = propose(probe(answers(sinfo=MIXED)))
    assert yaml.safe_load(text)["gpu_model"] == "nvidia_a100-sxm4-40gb"
    assert "# Or: v100." in text


def test_without_accounting():
    cluster = probe(answers(storage="accounting_storage/none"))
    values = yaml.safe_load(propose(cluster))
    assert values["accounting"] is False
    assert "account" not in values
    assert "status_command" not in values
    faults = faults_of(Site(status_command="sacct"), cluster)
    assert [fault.partition(":")[0] for fault in faults] == ["accounting", "status_command"]


def test_a_controller_that_forgets_jobs_is_not_asked_for_them():
    cluster = probe(answers(age=60))
    assert yaml.safe_load(propose(cluster))["status_command"] == "sacct"
    assert faults_of(Site(account="lab"), cluster) == [
        "status_command: the controller forgets jobs after 60 s, too soon for squeue; use sacct"
    ]
    (fault,) = faults_of(Site(account="lab", status_seconds=120), probe(answers()))
    assert fault.startswith("status_seconds: 120")
    assert "Ask for MinJobAge >= 200" in propose(probe(answers(age=60, storage="accounting_storage/none")))


@pytest.mark.parametrize(
    ("site", "said"),
    [
        ({"account": "mine"}, "account: 'mine' is not yours; yours: lab, other"),
        ({}, "account: none is given; yours: lab, other"),
        ({"account": "lab", "gpu_model": "h100"}, "gpu_model: no node has 'h100'; there are: a100"),
        ({"account": "lab", "partitions": {"long": {}}}, "partitions.long: not there, or down; there are: cpu, gpu"),
        (
            {"account": "lab", "partitions": {"cpu": {"max_runtime": 60, "max_mem_mb": 64000}}},
            "partitions.cpu.max_mem_mb: 64000, but its nodes have 32000",
        ),
        (
            {"account": "lab", "partitions": {"cpu": {"max_runtime": "2-00:00:00"}}},
            "partitions.cpu.max_runtime: 2-00:00:00, but jobs may last 1-00:00:00",
        ),
        ({"account": "lab", "partitions": {"cpu": {"max_runtime": 60, "max_gpu": 1}}}, "partitions.cpu.max_gpu: 1"),
    ],
)
def test_what_does_not_fit_is_named(site, said):
    faults = faults_of(Site.model_validate(site), probe(answers()))
    assert len(faults) == 1
    assert faults[0].startswith(said)


def test_an_answer_in_another_form_is_refused():
    with pytest.raises(ClusterError, match="which is not"):
        parse_sinfo("cpu* up 1-00:00:00\n")


def test_no_scheduler_and_one_that_fails():
    with pytest.raises(ClusterError, match="login node"):
        ask("no-such-program-anywhere")
    with pytest.raises(ClusterError, match="exit 3"):
        ask("bash", "-c", "exit 3")
    assert ask("echo", "x") == subprocess.check_output(["echo", "x"], text=True)
