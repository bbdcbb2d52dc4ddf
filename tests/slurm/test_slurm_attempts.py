"""Where a job that is tried again may run, and when it may not be tried again."""

import pytest

from forceuq.cluster.attempts import PastJob, ends, nodes_to_avoid, parse_jobs, refuse_cancelled
from forceuq.errors import ClusterError

CPU = {"cpu": frozenset({"c1", "c2"})}


def jobs(*rows):
    return [PastJob(str(number), state, node) for number, (state, node) in enumerate(rows)]


def test_jobs_of_other_runs_do_not_count():
    text = "7|FAILED|c1|forceuq_login_12_ab|a|b\n8|FAILED|c1|forceuq_login_123_cd|c\n9|RUNNING||interactive|\n\n"
    assert parse_jobs(text, "forceuq_login_12") == [PastJob("7", "FAILED", "c1", "a|b")]


def test_how_the_attempts_of_a_job_ended_is_told_from_those_of_other_jobs():
    past = [
        PastJob("10", "OUT_OF_MEMORY", "c1", "rule_fit_wildcards_bll_a_b_0"),
        PastJob("9", "TIMEOUT", "c1", "rule_fit_wildcards_bll_a_b_0"),
        PastJob("11", "COMPLETED", "c1", "rule_fit_wildcards_bll_a_b_0"),
        PastJob("12", "FAILED", "c1", "rule_fit_wildcards_bll_a_b_1"),
        PastJob("13", "PENDING", "", "rule_predict_wildcards_bll_a_b_0"),
    ]
    assert ends(past, ["bll", "a/b", "0"], 2) == ["TIMEOUT", "OUT_OF_MEMORY"]
    assert ends(past, ["bll", "a/b", "0"], 1) == ["OUT_OF_MEMORY"]
    assert ends(past, ["bll", "a/b", "1"], 3) == ["FAILED"]
    assert ends(past, ["bll", "a/b", "2"], 1) == []


def test_a_node_that_fails_every_job_is_avoided():
    assert nodes_to_avoid(jobs(("FAILED", "c1"), ("COMPLETED", "c2"), ("RUNNING", "c2")), CPU) == ["c1"]


def test_a_node_on_which_a_job_ended_well_is_not():
    assert nodes_to_avoid(jobs(("FAILED", "c1"), ("COMPLETED", "c1")), CPU) == []


@pytest.mark.parametrize("state", ["TIMEOUT", "OUT_OF_MEMORY", "CANCELLED", "PREEMPTED", "RUNNING"])
def test_limits_and_preemption_say_nothing_of_the_node(state):
    assert nodes_to_avoid(jobs((state, "c1")), CPU) == []


def test_some_node_of_a_partition_is_always_left():
    failed = jobs(("FAILED", "c1"), ("FAILED", "c2"), ("FAILED", "g1"))
    assert nodes_to_avoid(failed, {**CPU, "gpu": frozenset({"g1", "g2"})}) == ["g1"]
    assert nodes_to_avoid(jobs(("FAILED", "c1")), {"cpu": frozenset({"c1"})}) == []


def test_a_cancelled_job_stops_the_run():
    refuse_cancelled(jobs(("FAILED", "c1"), ("TIMEOUT", "c1")))
    with pytest.raises(ClusterError, match=r"job 1 was cancelled.*Start it again to go on"):
        refuse_cancelled(jobs(("FAILED", "c1"), ("CANCELLED", "c1")))
