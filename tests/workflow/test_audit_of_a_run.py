"""The records that a real run wrote: audited, traced, and damaged."""

import json
import random
import subprocess
import sys
from typing import Any

import pytest
from conftest import Project

from forceuq.provenance.audit import audit
from forceuq.provenance.chain import load_chain
from forceuq.provenance.findings import Kind

pytestmark = [pytest.mark.workflow, pytest.mark.slow]


def forceuq(project: Project, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run the forceuq command in a project; return its exit code and the JSON that it printed."""
    command = [sys.executable, "-m", "forceuq", *arguments, "--json"]
    done = subprocess.run(
        command, cwd=project.folder, env=project.environment(), capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_finished_run_is_verified_from_every_cell_and_figure_to_the_sources(finished: Project) -> None:
    code, report = forceuq(finished, "audit", "results/tiny")
    assert report["findings"] == []
    assert code == 0
    assert report["unchecked"] == ["whether the tree was clean: jobs ran outside of a repository"]
    assert {"tiny/tables/table2.md", "tiny/figures/shift/shift.pdf", "tiny/ledger.json"} <= set(report["results"])
    tables = {address.partition(":")[0] for address in report["cells"]}
    assert tables == {"table1", "table2", "costs"}
    rows = (finished.folder / "results/tiny/tables/table2.csv").read_text().count("this run")
    assert sum(address.startswith("table2:") for address in report["cells"]) == rows * 4 > 0


def test_a_cell_is_traced_to_seeds_fits_caches_and_weights(finished: Project) -> None:
    _, traced = forceuq(finished, "trace", "table2:Molecules (GFN2-xTB) OOD,BLL, mse,ECE")
    summary = traced["summary"]
    assert summary["seeds"] == ["0"]
    assert summary["fits"] == ["tiny/fits/bll-mse/molecules/methylamine/seed0"]
    assert all("/molecules-" in cache for cache in summary["caches"])
    assert [path.rpartition("/")[2] for path in summary["weights"]] == ["forceuq-small.safetensors"]
    sources = [job["source"] for job in traced["jobs"].values() if job["source"]]
    assert {"gfn2_rmd17"} == {source["generator"]["kind"] for source in sources if "generator" in source}
    assert any(source.get("url", "").endswith("weights/forceuq-small.safetensors") for source in sources)


def test_a_flipped_bit_in_an_output_of_any_rule_is_found(project: Project) -> None:
    run = project.folder / "results/tiny"
    chain = load_chain(run.parent, run.name)
    rng = random.Random(0)
    by_rule = {record.rule: record for record in chain.records.values()}
    assert len(by_rule) >= 18
    expected = []
    for record in by_rule.values():
        output = rng.choice(record.outputs)
        name = f"{output.path}/{rng.choice(output.files).path}" if output.directory else output.path
        file = run.parent / name
        content = bytearray(file.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(bytes(content))
        expected.append(name)
    found = {finding.path for finding in audit(run).findings if finding.kind is Kind.ALTERED}
    assert found == set(expected)


def test_other_settings_and_other_code_are_named(project: Project) -> None:
    project.configure(**{"methods.bll-mse.options.learning_rate": 2e-3})
    with (project.folder / "forceuq/figures/shift.py").open("a") as handle:
        handle.write("\n_CHANGED = 1\n")
    files = ["--configfile", "config/demo.yaml", "--configfile", str(project.config)]
    code, report = forceuq(project, "audit", "results/tiny", *files)
    assert code == 3
    found = {(finding["kind"], finding["path"].removeprefix("tiny/records/")) for finding in report["findings"]}
    assert found == {
        ("configuration", "fit/bll-mse/molecules/methylamine/seed0.json"),
        ("configuration", "fit/bll-mse/alloys/mptrj/seed0.json"),
        ("configuration", "ledger.json"),
        ("code", "shift_figure.json"),
    }
    assert report["results"]["tiny/figures/shift/shift.png"]
