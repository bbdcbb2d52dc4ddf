import pytest

from forceuq.data.sources import kinds, load_source
from forceuq.data.splits import part_counts, read_part, write_splits
from forceuq.errors import ConfigurationError, DataError


def write(path, rows=(4, 0, 7), parts=("b", "a", "a"), expected=("a", "b")):
    write_splits(path, [f"s{row}" for row in rows], rows, parts, expected=expected, metadata={"seed": 3})
    return path


def test_parts_are_read_back_in_row_order(tmp_path):
    path = write(tmp_path / "splits.parquet", rows=(7, 4, 0), parts=("a", "b", "a"))
    assert read_part(path, "a").tolist() == [0, 7]
    assert read_part(path, "b").tolist() == [4]
    assert part_counts(path) == {"a": 2, "b": 1}


def test_an_empty_part_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match="'far'"):
        write(tmp_path / "splits.parquet", expected=("a", "b", "far"))
    assert not list(tmp_path.iterdir())


def test_a_structure_in_two_parts_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match="s4"):
        write(tmp_path / "splits.parquet", rows=(4, 4), parts=("a", "b"))


def test_an_unknown_part_is_an_error_with_the_nearest(tmp_path):
    path = write(tmp_path / "splits.parquet", parts=("train", "val", "val"), expected=("train", "val"))
    with pytest.raises(DataError, match="'trian'; nearest: train"):
        read_part(path, "trian")
    with pytest.raises(DataError, match=r"none\.parquet"):
        read_part(tmp_path / "none.parquet", "a")


def test_an_unknown_kind_is_an_error_with_the_nearest():
    assert {"mptrj", "rmd17", "tm23", "alexandria", "extxyz"} == set(kinds())
    with pytest.raises(ConfigurationError, match="'rmd18'; nearest: rmd17"):
        load_source("rmd18")
