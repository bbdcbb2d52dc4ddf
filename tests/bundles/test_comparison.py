"""Two runs side by side."""

import json

import numpy as np
import pytest
from toy_runs import Toy
from typer.testing import CliRunner

from forceuq.commands import app
from forceuq.errors import DataError
from forceuq.metric_tables import write_frame
from forceuq.provenance.audit import audit
from forceuq.provenance.comparison import compare_runs, report
from forceuq.provenance.schema import file_bytes, sealed


def test_what_differs_and_how_the_metrics_moved(finished: Toy) -> None:
    found = compare_runs(finished.results / "a", finished.results / "b")
    assert [str(change) for change in found.configuration] == ["methods.bll.options.rate: 0.001 -> 0.002"]
    assert found.sources == found.code == found.packages == found.machines == []
    moved = found.moved
    assert list(moved["metric"]) == ["nll"] * 3
    np.testing.assert_allclose(moved["change"], 0.5)
    # The standard deviation of 0 and 0.1, twice, in quadrature.
    np.testing.assert_allclose(moved["spreads"], 0.5 / np.sqrt(2 * np.std([0, 0.1], ddof=1) ** 2))
    text = report(found, ("a", "b"))
    assert "* methods.bll.options.rate: 0.001 -> 0.002" in text
    assert "## Metrics: 3 of 9 moved" in text
    assert "| free | id | bll | none | nll | 0.05 ± 0.071 | 0.55 ± 0.071 | +0.5 | +5 |" in text
    assert "1 more moved less." in report(found, ("a", "b"), rows=2)


def test_a_run_does_not_differ_from_itself(finished: Toy) -> None:
    found = compare_runs(finished.results / "a", finished.results / "a")
    assert found.moved.empty
    assert not any(found.as_json()[name] for name in ("configuration", "sources", "code", "packages", "machines"))


def test_one_seed_has_no_spread(toy: Toy) -> None:
    for name, shift in (("a", 0.0), ("b", 1e-12)):
        toy.run(name, shift=shift, seeds=1)
    found = compare_runs(toy.results / "a", toy.results / "b")
    assert list(found.moved["metric"]) == ["nll"] * 3
    assert found.moved["spreads"].isna().all()
    assert {row["spreads"] for row in found.as_json()["metrics"]} == {None}


def test_other_raw_data_and_code_are_named(finished: Toy, toy: Toy) -> None:
    name = "cache/datasets/free-12345678/raw"
    wildcards = {"dataset": "free-12345678"}
    toy.job("cache", "download", [], {name: b"other bytes"}, wildcards=wildcards)
    structures = "cache/datasets/free-12345678/structures.parquet"
    toy.job("cache", "read_structures", [name], {structures: b"s"}, wildcards=wildcards)
    toy.run("a")
    found = compare_runs(finished.results / "a", toy.results / "a")
    assert [change.path for change in found.sources] == ["cache/datasets/free/raw"]
    assert found.configuration == []


def test_an_unfinished_run_is_an_error(toy: Toy) -> None:
    (toy.results / "a/ledger.json").unlink()
    with pytest.raises(DataError, match=r"a/ledger\.json: is not there: no run .* to its end"):
        compare_runs(toy.results / "a", toy.results / "b")


def test_altered_metrics_are_an_error(toy: Toy) -> None:
    metrics = toy.results / "a/metrics.parquet"
    content = metrics.read_bytes()
    write_frame(toy.metrics(0.25, seeds=2), metrics, "metrics")
    for runs in (("a", "b"), ("b", "a")):
        with pytest.raises(DataError, match=r"a/metrics\.parquet: is not what its job made.*forceuq audit"):
            compare_runs(*(toy.results / name for name in runs))
    # A job's honest record of other metrics does not help either, nor that of another file.
    toy.job("a", "merge_metrics", [], {"a/metrics.parquet": toy.metrics(0.25, seeds=2)})
    with pytest.raises(DataError, match="is not what its job made"):
        compare_runs(toy.results / "a", toy.results / "b")
    metrics.write_bytes(content)
    compare_runs(toy.results / "a", toy.results / "b")
    metrics.unlink()
    with pytest.raises(DataError, match=r"a/metrics\.parquet: cannot be read"):
        compare_runs(toy.results / "a", toy.results / "b")


@pytest.mark.parametrize("sealed_again", [False, True])
def test_an_edited_record_is_an_error(toy: Toy, sealed_again: bool) -> None:
    path = toy.results / "a/records/fit/free_0.json"
    values = json.loads(path.read_bytes())
    values["machine"]["cpu"] = "a faster one"
    if sealed_again:
        del values["digest"]
        values = sealed(values)
    path.write_bytes(file_bytes(values))
    with pytest.raises(DataError, match=r"free_0\.json: .*forceuq audit"):
        compare_runs(toy.results / "a", toy.results / "b")


def test_a_cache_made_again_for_another_run_counts_as_it_was(finished: Toy, toy: Toy) -> None:
    name = "cache/datasets/free-12345678/raw"
    wildcards = {"dataset": "free-12345678"}
    toy.job("cache", "download", [], {name: b"other bytes"}, wildcards=wildcards)
    structures = "cache/datasets/free-12345678/structures.parquet"
    toy.job("cache", "read_structures", [name], {structures: b"s"}, wildcards=wildcards)
    toy.run("b")
    assert audit(toy.results / "b").findings == []
    found = compare_runs(toy.results / "a", toy.results / "b")
    assert [change.path for change in found.sources] == ["cache/datasets/free/raw"]


def test_the_command(finished: Toy) -> None:
    runs = [str(finished.results / name) for name in ("a", "b")]
    said = CliRunner().invoke(app, ["compare", *runs])
    assert said.exit_code == 0
    assert said.output.startswith("# a -> b\n")
    assert '"first": 0.001' in CliRunner().invoke(app, ["compare", *runs, "--json"]).output
