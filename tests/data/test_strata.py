import numpy as np
import pandas as pd
import pytest

from forceuq.data.splits import write_splits
from forceuq.data.strata import NO_PART, count_strata, write_table
from forceuq.data.structures import StructureWriter, structure
from forceuq.errors import DataError
from forceuq.figures.strata import strata_figure

PARTS = ("train", "test")
BOUNDARIES = (0.005, 0.0175, 0.07)
# (energy above relaxed, stratum, atoms, group, part)
ROWS = [
    (-0.2, "ID", 1, "a", "train"),
    (0.0, "ID", 2, "a", "train"),
    (0.004, "ID", 3, "b", None),
    (0.005, "Near", 1, "a", None),
    (0.0175, "Mid", 4, "c", "test"),
    (0.06, "Mid", 1, "d", "test"),
    (0.07, "Far", 5, "c", "test"),
    (3.0, "Far", 1, "c", "test"),
    (None, "undefined", 2, "e", None),
]


def write(folder, rows):
    with StructureWriter(folder / "s.parquet") as writer:
        for i, (above, _, n, group, _) in enumerate(rows):
            zeros = np.zeros((n, 3))
            writer.add(
                structure(
                    f"s{i}",
                    group,
                    numbers=[1] * n,
                    positions=np.arange(3.0 * n).reshape(n, 3),
                    forces=zeros,
                    energy_above_relaxed=above,
                )
            )
    chosen = [i for i, row in enumerate(rows) if row[-1]]
    parts = [rows[i][-1] for i in chosen]
    write_splits(folder / "splits", [f"s{i}" for i in chosen], chosen, parts, expected=sorted(set(parts)))
    return folder / "s.parquet", folder / "splits"


def test_counts_are_those_of_a_plain_group_by(tmp_path):
    counts, histogram = count_strata(*write(tmp_path, ROWS), PARTS, BOUNDARIES)
    plain = pd.DataFrame(ROWS, columns=["above", "stratum", "atoms", "group", "part"]).fillna({"part": NO_PART})
    expected = plain.groupby(["stratum", "part"]).agg(
        structures=("atoms", "size"), atoms=("atoms", "sum"), groups=("group", "nunique")
    )
    found = counts.set_index(["stratum", "part"])[["structures", "atoms", "groups"]]
    pd.testing.assert_frame_equal(found.sort_index(), expected, check_dtype=False)
    assert histogram.groupby("part")["structures"].sum().to_dict() == {"train": 2, "test": 4, NO_PART: 2}
    for _, row in histogram[histogram["part"] == "test"].iterrows():
        above = plain.loc[plain["part"] == "test", "above"].astype(float)
        inside = above.between(row["from"], row["to"], inclusive="left").sum()
        assert row["structures"] == inside or row["to"] == 3.0  # the last bin includes its end
    edges = histogram["to"].to_numpy()
    assert all(np.isin(boundary, edges) for boundary in BOUNDARIES), "a bin goes over a boundary"


def test_table_and_figure_are_written(tmp_path):
    counts, histogram = count_strata(*write(tmp_path, ROWS), PARTS, BOUNDARIES)
    write_table(counts, tmp_path / "t.csv")
    text = (tmp_path / "t.md").read_text()
    assert "| ID | below 0.005 | train | 2 | 3 | 1 |" in text
    assert "| Mid | 0.0175 to 0.07 | test | 2 | 5 | 2 |" in text
    assert "| Far | 0.07 and above | test | 2 | 6 | 1 |" in text
    assert "| undefined | – | in no part | 1 | 2 | 1 |" in text
    assert text.splitlines()[-1] == "| All | | | 9 | 20 | |"
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv"), counts, check_dtype=False)
    strata_figure(histogram, tmp_path / "f.png", BOUNDARIES, "Title")
    for suffix in ("png", "pdf", "csv"):
        assert (tmp_path / f"f.{suffix}").stat().st_size > 0
    first = (tmp_path / "f.png").read_bytes()
    strata_figure(histogram, tmp_path / "f.png", BOUNDARIES, "Title")
    assert (tmp_path / "f.png").read_bytes() == first


def test_without_energies_above_relaxed_there_are_no_strata(tmp_path):
    rows = [(None, "undefined", 1, "a", "train")] * 2
    with pytest.raises(DataError, match="no strata"):
        count_strata(*write(tmp_path, rows), ["train"], BOUNDARIES)
