"""Lineages: of a cell only what it follows from, down to the sources; and what is said of unknown ones."""

import json
import re

import orjson
import pytest
from typer.testing import CliRunner

from forceuq.commands import app
from forceuq.errors import DataError
from forceuq.provenance.chain import load_chain
from forceuq.provenance.lineage import as_json, as_mermaid, as_text, source_of, summary, trace_cell, trace_file
from forceuq.provenance.schema import file_bytes
from tests.provenance.conftest import SOURCE, Tree


@pytest.fixture(scope="module")
def chain(made: Tree):
    return load_chain(made.results, "demo")


def test_a_cell_follows_from_the_fits_of_its_own_row(chain) -> None:
    lineage = trace_cell(chain, "table2:Alloys OOD,SWAG,decoupled (a, b),ECE")
    assert summary(lineage) == {
        "seeds": ["0", "1"],
        "fits": ["demo/fits/swag/alloys/t/seed0", "demo/fits/swag/alloys/t/seed1"],
        "caches": ["cache/features/small/alloys/train"],
        "weights": ["cache/backbones/small/small.bin"],
        "data": ["cache/datasets/alloys/raw.json"],
        "commits": ["unknown"],
    }
    assert "demo/records/fit/bll/alloys/t/seed0.json" not in lineage.records


def test_a_cell_of_the_costs_follows_from_its_fits(chain) -> None:
    lineage = trace_cell(chain, "costs:Alloys,BLL, nlml,total")
    assert summary(lineage)["fits"] == ["demo/fits/bll/alloys/t/seed0", "demo/fits/bll/alloys/t/seed1"]
    assert lineage.values == {"costs:Alloys,BLL, nlml,total": "1.5"}


@pytest.mark.parametrize(
    ("address", "cells"),
    [
        ("table2:Alloys ID,BLL, nlml,decoupled (a, b),MAE", 1),
        ("table2:alloys id, bll ,DECOUPLED,mae", 1),  # names of the configuration; case and spaces
        ("table2:Alloys ID,BLL, nlml,MAE", 2),  # every calibration
        ("table2:Alloys ID,BLL,MAE", 2),  # the label's beginning
        ("costs:alloys,bll,total", 1),
    ],
)
def test_how_a_cell_may_be_addressed(chain, address: str, cells: int) -> None:
    assert len(trace_cell(chain, address).values) == cells


def test_the_value_is_the_tables(chain, made: Tree) -> None:
    (value,) = trace_cell(chain, "table2:Alloys ID,SWAG,raw,NLL").values.values()
    row = next(line for line in (made.run / "tables/table2.csv").read_text().splitlines() if "ID,SWAG,raw" in line)
    number = row.split(",")[-4]
    assert value == f"{number} ± 0.01, n = 2"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("table2:Alloys OOD,SWAK,raw,ECE", "did you mean 'table2:Alloys OOD,SWAG,raw,ECE'"),
        ("table2:x", "addresses are like 'table2:Alloys ID,"),
        ("tabel2:Alloys OOD,SWAG,ECE", "did you mean 'table2'"),
    ],
)
def test_an_unknown_cell_is_an_error_that_names_the_nearest(chain, address: str, said: str) -> None:
    with pytest.raises(DataError, match=re.escape(said)):
        trace_cell(chain, address)


def test_an_altered_table_does_not_hurt_another(tree: Tree) -> None:
    table = tree.run / "tables/costs.csv"
    table.write_bytes(b"x" + table.read_bytes())
    chain = load_chain(tree.results, "demo")
    assert len(trace_cell(chain, "table2:Alloys ID,BLL,MAE").values) == 2
    with pytest.raises(DataError, match=r"costs\.csv: is not as its job wrote it.*forceuq audit"):
        trace_cell(chain, "costs:alloys,bll,total")


@pytest.mark.parametrize("source", [None, {}, {"urls": None}, {"urls": [None]}, "x"])
def test_a_lineage_with_an_edited_source_can_be_shown(tree: Tree, source: object) -> None:
    path = tree.record("cache:download/alloys")
    values = orjson.loads(path.read_bytes())
    values.update(params={"source": source}, facts={})
    path.write_bytes(file_bytes(values))
    fit = tree.record("fit/swag/alloys/t/seed0")
    fit.write_bytes(fit.read_bytes().replace(b'"seed": 0', b'"seed": null'))
    lineage = trace_cell(load_chain(tree.results, "demo"), "table2:Alloys OOD,SWAG,raw,ECE")
    assert "download alloys" in as_text(lineage)
    assert "download alloys" in as_mermaid(lineage)
    assert summary(lineage)["seeds"] == ["1"]


def test_a_file_inside_a_directory_is_traced(chain, made: Tree) -> None:
    lineage = trace_file(chain, made.run / "predictions/bll/alloys/t/seed1/part.bin")
    assert lineage.start == "demo/records/predict/bll/alloys/t/seed1.json"
    with pytest.raises(DataError, match=r"did you mean 'demo/tables/table2\.csv'"):
        trace_file(chain, made.run / "tables/table3.csv")


def test_the_tree_ends_at_the_sources(chain) -> None:
    text = as_text(trace_cell(chain, "table2:Alloys OOD,SWAG,raw,ECE"))
    for fact in (SOURCE["urls"][1], SOURCE["doi"], SOURCE["licence"], "Apache-2.0"):
        assert text.count(str(fact)) == 1, fact
    assert re.search(r"sha256 [0-9a-f]{64}  cache/datasets/alloys/raw\.json", text)
    assert "seeds: 0, 1" in text


def test_doi_and_licence_are_those_of_the_runs_configuration(chain) -> None:
    download = {**SOURCE, "doi": None, "licence": "MIT"}
    (record,) = (record for record in chain.records.values() if record.rule == "download")
    configuration = {"datasets": {"alloys": {"download": download}}, "backbone": {"weights": {"licence": "BSD"}}}
    # Folders of real caches end in a digest.
    output = record.outputs[0].model_copy(update={"path": "cache/datasets/alloys-12345678/raw"})
    found = source_of(record.model_copy(update={"outputs": [output]}), configuration)
    assert found is not None
    assert (found["url"], found["doi"], found["licence"]) == (SOURCE["urls"][1], None, "MIT")
    (weights,) = (record for record in chain.records.values() if record.rule == "download_weights")
    assert [source_of(weights, now)["licence"] for now in (configuration, {})] == ["BSD", "Apache-2.0"]


def test_mermaid_has_every_job_and_every_step(chain) -> None:
    lineage = trace_cell(chain, "table2:Alloys OOD,SWAG,raw,ECE")
    text = as_mermaid(lineage)
    assert text.startswith("flowchart LR\n")
    assert len(re.findall(r"^  j\d+[\[(]", text, re.MULTILINE)) == len(lineage.records)
    steps = sum(len(lineage.before(path)) for path in lineage.records)
    assert len(re.findall(r"^  j\d+ --> j\d+$", text, re.MULTILINE)) == steps
    assert "doi: 10.1234/alloys" in text


def test_json_has_the_sources(chain) -> None:
    jobs = json.loads(json.dumps(as_json(trace_cell(chain, "table2:Alloys OOD,SWAG,raw,ECE"))))["jobs"]
    source = jobs["cache/records/download/alloys.json"]["source"]
    assert (source["url"], source["doi"], source["licence"]) == (SOURCE["urls"][1], SOURCE["doi"], SOURCE["licence"])
    assert jobs["demo/records/fit/swag/alloys/t/seed0.json"]["from"] == [
        "cache/records/features/small/alloys/train.json"
    ]


def test_the_command(made: Tree) -> None:
    def run(*arguments: str):
        return CliRunner().invoke(app, ["trace", *arguments])

    done = run("table2:Alloys OOD,SWAG,ECE", "--results", str(made.results))
    assert done.exit_code == 0
    assert "download alloys" in done.output
    assert "metrics.parquet" in run(str(made.run / "figures/shift.png")).output
    assert "read_structures" in run(str(made.results / "cache/features/small/alloys/train")).output
    assert run(str(made.run / "figures/shift.png"), "--mermaid").output.startswith("flowchart")
    assert "no such file" in str(run("table2").exception)
    assert "did you mean 'demo'" in str(run("table2:x", "--run", str(made.results / "dem")).exception)
