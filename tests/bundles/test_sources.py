"""Where data and weights come from, and what their licences allow."""

from pathlib import Path

import pandas as pd
import pytest

from forceuq.sources import configured_sources, no_derivatives, write_sources

CONFIGURATION = {
    "datasets": {
        "mptrj": {"label": "MPtrj", "download": {"urls": ["https://x/a"], "licence": "MIT", "doi": "10/a"}},
        "tm23": {"label": "TM23", "download": {"urls": ["https://x/b"], "licence": "CC-BY-NC-ND-4.0"}},
        "own": {"label": "Own|mine", "download": {"urls": ["file:own.xyz"], "licence": None}},
        "demo": {"label": "Demo", "download": None},
    },
    "backbone": {"name": "orb", "weights": {"urls": ["https://x/w"], "sha256": "ab", "licence": "Apache-2.0"}},
}


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("CC-BY-NC-ND-4.0", True),
        ("CC BY-ND 4.0", True),
        ("cc-by-nd-3.0-igo", True),
        ("No derivatives", True),
        ("CC-BY-4.0", False),
        ("MIT and Apache", False),
        ("LGPL, no warranty", False),
        ("Expand-1.0", False),
    ],
)
def test_licences_without_derivatives(licence: str, expected: bool) -> None:
    assert no_derivatives(licence) is expected


def test_every_source_has_a_row_with_its_licence(tmp_path: Path) -> None:
    write_sources(CONFIGURATION, tmp_path / "sources.csv")
    table = pd.read_csv(tmp_path / "sources.csv").set_index("source")
    assert list(table.index) == ["MPtrj", "TM23", "Own|mine", "Demo", "orb"]
    assert table["licence"].to_dict() == {
        "MPtrj": "MIT",
        "TM23": "CC-BY-NC-ND-4.0",
        "Own|mine": "not stated",
        "Demo": "made by the workflow",
        "orb": "Apache-2.0",
    }
    free = table["may be passed on"] == "yes"
    assert list(table.index[free]) == ["MPtrj", "Demo"]
    assert table["may be passed on"]["orb"] == "as their licence says"
    text = (tmp_path / "sources.md").read_text()
    assert "| TM23 | data set | CC-BY-NC-ND-4.0 |" in text
    assert "| Own\\|mine | data set | not stated |" in text
    assert configured_sources({}) == []


def test_nothing_is_claimed_of_weights_without_a_licence(tmp_path: Path) -> None:
    write_sources({"backbone": {"name": "orb", "weights": {"urls": ["file:x"]}}}, tmp_path / "sources.csv")
    (row,) = pd.read_csv(tmp_path / "sources.csv").to_dict("records")
    assert (row["licence"], row["may be passed on"]) == ("not stated", "not known")
