"""The plan's jobs are those that a dry run names."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from snakemake.utils import update_config

from forceuq.configuration import load_configuration
from forceuq.plan import work_of

ROOT = Path(__file__).parents[2]
RULES = {
    "generate": {"generate"},
    "fetch": {"download"},
    "read and split": {"read_structures", "split"},
    "cache": {"features"},
    "summarise": {"summarise_shard"},
    "fit": {"fit"},
    "predict": {"predict"},
    "combine": {"combine"},
    "calibrate, measure": {"calibrate", "metrics"},
    "compare": {"compare"},
}


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("rmd17.yaml", {}),
        # All that is counted in a way of its own: statistics of shards, of the pretrained head and of a fit's, strata,
        # surfaces, ensembles of several sizes, and one that is not evaluated.
        (
            "demo.yaml",
            {
                "features": {"statistics_by_shard": True, "shards": {"alloys": {"train": 3, "far": 2}}},
                "methods": {"lora-ensemble": {"evaluate": False}},
            },
        ),
    ],
)
def test_the_plan_has_the_jobs_of_a_dry_run(tmp_path, name, changes):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"results": str(tmp_path / "results"), **changes}))
    files = [str(ROOT / "config" / name), str(overlay)]
    values = {}
    for file in files:
        update_config(values, yaml.safe_load(Path(file).read_text()))
    planned = {}
    for work in work_of(load_configuration(values), None):
        planned[work.stage] = planned.get(work.stage, 0) + work.jobs
    command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "rules", "--cores", "1", "--nolock"]
    printed = subprocess.run(
        [*command, "--configfile", *files],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=True,
    )
    text = printed.stdout + printed.stderr
    jobs = {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", text, re.MULTILINE)}
    total = jobs.pop("total") - jobs.pop("all")
    for stage, rules in RULES.items():
        assert planned.get(stage, 0) == sum(jobs.pop(rule, 0) for rule in rules), stage
    assert planned["rest"] == sum(jobs.values())
    assert sum(planned.values()) == total
