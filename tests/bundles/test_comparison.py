"""Two runs side by side."""

import numpy as np
import pytest
from toy_runs import Toy
from typer.testing import CliRunner

from forceuq.commands import app
from forceuq.errors import DataError
from forceuq.metric_tables import write_frame
from forceuq.provenance.comparison import compare_runs, report


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
        write_frame(toy.metrics(shift, seeds=1), toy.results / name / "metrics.parquet", "metrics")
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
    with pytest.raises(DataError, match=r"ledger\.json"):
        compare_runs(toy.results / "a", toy.results / "b")


def test_the_command(finished: Toy) -> None:
    runs = [str(finished.results / name) for name in ("a", "b")]
    said = CliRunner().invoke(app, ["compare", *runs])
    assert said.exit_code == 0
    assert said.output.startswith("# a -> b\n")
    assert '"first": 0.001' in CliRunner().invoke(app, ["compare", *runs, "--json"]).output
