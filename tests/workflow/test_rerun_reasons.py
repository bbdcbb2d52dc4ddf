"""The summary of why jobs would run: causes named once, each with all that follows from it."""

import pytest

from forceuq.differences import ABSENT, Change
from forceuq.files import write_json
from rerun_reasons.changes import parameter_changes
from rerun_reasons.plan import PlannedJob
from rerun_reasons.summary import summary


def recorded(*values: object) -> list[str]:
    """Return values as Snakemake keeps them: their representations, sorted, without names."""
    return sorted(map(repr, values))


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        (["a", {"lr": 1e-3, "n": 2}], {"kind": "a", "options": {"lr": 2e-3, "n": 2}}, [("options.lr", 1e-3, 2e-3)]),
        ([400], {"draws": 500}, [("draws", 400, 500)]),
        ([["id", "far"]], {"splits": ["id", "mid", "far"]}, [("splits", ABSENT, "mid")]),
        ([["id", "far"]], {"splits": ["id"]}, [("splits", "far", ABSENT)]),
        ([["id", "far"]], {"splits": ["id", "mid"]}, [("splits", "far", "mid")]),
        ([["id", "far"]], {"splits": ["far", "id"]}, [("splits", ["id", "far"], ["far", "id"])]),
        ([{"x": 1}], {"options": {"x": 1, "y": None}}, [("options.y", ABSENT, None)]),
        (["label", "0123456789abcdef"], {"code": "f" * 16, "title": "label"}, [("code", "0123456789abcdef", "f" * 16)]),
        # Two dictionaries changed: each finds the one it was.
        (
            [{"a": 1, "b": 1}, {"c": 1, "d": 1}],
            {"one": {"a": 2, "b": 1}, "two": {"c": 2, "d": 1}},
            [("one.a", 1, 2), ("two.c", 1, 2)],
        ),
        ([3], {}, [("a parameter", 3, ABSENT)]),
        ([], {"new": 3}, [("new", ABSENT, 3)]),
    ],
)
def test_changes_are_found_without_names(old, new, changes):
    assert parameter_changes(recorded(*old), new) == [Change(*change) for change in changes]


def fit(method: str, seed: int, **facts: object) -> PlannedJob:
    return PlannedJob("fit", {"method": method, "dataset": "d", "task": "t", "seed": str(seed)}, **facts)


def after(rule: str, *positions: int, **facts: object) -> PlannedJob:
    return PlannedJob(rule, {}, after=list(positions), **facts)


def test_each_cause_has_all_jobs_that_follow_from_it(tmp_path):
    rate = [Change("options.learning_rate", 0.001, 0.002)]
    jobs = [
        *(fit("swag", seed, changes=rate) for seed in range(3)),
        *(after("predict", n) for n in range(3)),
        fit("bll", 0, changes=[Change("options.rank", 1, 2)]),
        after("table1", 3, 4, 5, 6),
        after("shift_figure", 7),
    ]
    assert summary(jobs, tmp_path) == [
        "learning_rate of swag changed 0.001 -> 0.002: 3 fits, 3 predictions, 1 figure, 1 table",
        "rank of bll changed 1 -> 2: 1 fit, 1 figure, 1 table",
        "together: 4 fits, 3 predictions, 1 figure, 1 table",
    ]


def test_code_is_named_by_file_and_package(tmp_path):
    old, new = "0" * 16, "1" * 16
    parts = {"files": {"forceuq/a.py": "1", "forceuq/b.py": "1"}, "packages": {"torch": "2.12"}, "python": "3.11"}
    write_json(tmp_path / f"{old}.json", parts)
    changed = {"files": {"forceuq/a.py": "2", "forceuq/c.py": "1"}, "packages": {"torch": "2.13"}, "python": "3.12"}
    write_json(tmp_path / f"{new}.json", changed)
    lines = summary([fit("bll", 0, changes=[Change("code", old, new)])], tmp_path)
    assert [line.partition(":")[0] for line in lines] == [
        "forceuq/a.py changed",
        "forceuq/b.py is no longer reached",
        "forceuq/c.py is reached now",
        "torch 2.12 -> 2.13",
        "Python 3.11 -> 3.12",
        "together",
    ]
    unknown = summary([fit("bll", 0, changes=[Change("code", "2" * 16, new)])], tmp_path)
    assert unknown == ["the code of fit changed (what it was made of is not known): 1 fit"]


def test_what_is_new_explains_what_its_followers_gained(tmp_path):
    gained = [Change("fits", ABSENT, "bll/d/t/seed1")]
    jobs = [fit("bll", 1, new=True), after("predict", 0, new=True), after("table1", 1, changes=gained)]
    assert summary(jobs, tmp_path) == ["bll, seed 1, is not there yet: 1 fit, 1 prediction, 1 table"]
    assert summary(jobs[:2], tmp_path) == ["nothing of this is there yet: 1 fit, 1 prediction"]
    lost = [after("table1", changes=[Change("fits", "bll/d/t/seed1", ABSENT)], lost_inputs=["x"])]
    assert summary(lost, tmp_path) == ["fits of table1: bll/d/t/seed1 is gone: 1 table"]


@pytest.mark.parametrize(
    ("facts", "cause"),
    [
        ({"gone": True}, "results of bll are gone"),
        ({"unfinished": True}, "bll was not finished"),
        ({"forced": True}, "fit was asked for (forced)"),
        ({"environment": True}, "the conda environment changed"),
        ({"changed_files": ["raw"]}, "the content of raw changed"),
        ({"lost_inputs": ["x"]}, "fit no longer takes x"),
        ({"gained_inputs": ["x"]}, "fit takes x now"),
        ({}, "something about fit that Snakemake does not tell"),
    ],
)
def test_other_causes(tmp_path, facts, cause):
    assert summary([fit("bll", 0, **facts)], tmp_path) == [f"{cause}: 1 fit"]


def test_nothing_to_do(tmp_path):
    assert summary([], tmp_path) == ["Nothing to do: every result is there and up to date."]
