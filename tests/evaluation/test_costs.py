"""The table of costs: means over fits, stages in order, damaged reports refused."""

import json

import pandas as pd
import pytest

from forceuq.costs import cost_table
from forceuq.errors import DataError

METHODS = {"a": "Method A|1", "b": "Method B"}


@pytest.fixture
def fits(tmp_path):
    reports = [
        ("set", "b", {"statistics": 1.0, "projection": 4.0}, 10),
        ("set", "b", {"statistics": 3.0, "projection": 8.0}, 30),
        ("set", "a", {"hyperparameters": 0.5, "statistics": 1.5}, None),
    ]
    found = []
    for index, (dataset, method, seconds, epochs) in enumerate(reports):
        folder = tmp_path / str(index)
        folder.mkdir()
        projection = {"epochs": epochs} if epochs else None
        (folder / "report.json").write_text(json.dumps({"seconds": seconds, "atoms": 7, "projection": projection}))
        found.append((dataset, method, folder))
    return found


def test_means_and_order(fits, tmp_path):
    cost_table(fits, tmp_path / "costs.csv", METHODS, {"set": "The set"})
    table = pd.read_csv(tmp_path / "costs.csv").set_index("method")
    assert list(table.index) == ["a", "b"]
    assert list(table.columns)[1:4] == ["projection", "statistics", "hyperparameters"]
    assert table.loc["b", ["projection", "statistics", "total", "epochs", "fits"]].tolist() == [6, 2, 8, 20, 2]
    assert table.loc["a", "total"] == 2.0
    assert pd.isna(table.loc["a", "projection"])
    text = (tmp_path / "costs.md").read_text()
    assert "| The set | Method A\\|1 | – | 1.50 | 0.50 | 2.00 | – | 7 | 1 |" in text


def test_a_damaged_report_is_named(fits, tmp_path):
    (fits[1][2] / "report.json").write_text("{}")
    with pytest.raises(DataError, match=r"1/report\.json.*fit again"):
        cost_table(fits, tmp_path / "costs.csv", METHODS, {"set": "The set"})
    assert not (tmp_path / "costs.csv").exists()
