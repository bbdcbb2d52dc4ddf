import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forceuq.errors import DataError
from forceuq.predictions import (
    pack_symmetric,
    predictions_metadata,
    read_predictions,
    unpack_symmetric,
    write_predictions,
)


def test_packing_keeps_each_element_in_its_place():
    matrix = np.array([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]])
    assert pack_symmetric(matrix).tolist() == [1, 2, 3, 4, 5, 6]
    assert np.array_equal(unpack_symmetric(pack_symmetric(matrix)), matrix)


def test_round_trip_and_bytes_do_not_depend_on_the_blocks(tmp_path, block, cut_block, metadata):
    whole = block(70_000, kind="ensemble")
    write_predictions(tmp_path / "one.parquet", [whole], metadata)
    n = write_predictions(tmp_path / "many.parquet", cut_block(whole, [1, 65_535, 1, 0, 3000, 1463]), metadata)
    assert n == 70_000
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "many.parquet").read_bytes()
    blocks = list(read_predictions(tmp_path / "many.parquet", max_atoms=9999))
    assert max(len(b) for b in blocks) <= 9999
    for name, value in vars(whole).items():
        assert np.array_equal(np.concatenate([getattr(b, name) for b in blocks]), value), name
    read = predictions_metadata(tmp_path / "one.parquet")
    assert read == {**metadata, "schema": "predictions", "version": 1, "n_atoms": 70_000}


@pytest.mark.parametrize("name", ["target", "mean", "floor", "spread"])
def test_non_finite_number_names_its_row_and_leaves_no_file(tmp_path, block, cut_block, metadata, name):
    bad = block(50)
    getattr(bad, name)[33, 1] = np.nan
    with pytest.raises(DataError, match=rf"record 33: '{name}' of structure 4, atom 5 is not finite"):
        write_predictions(tmp_path / "p.parquet", cut_block(bad, [20, 30]), metadata)
    assert list(tmp_path.iterdir()) == []


def test_ragged_block_and_no_atoms_are_refused(tmp_path, block, metadata):
    ragged = dataclasses.replace(block(5), floor=np.ones((5, 3)))
    with pytest.raises(DataError, match="'floor' has shape"):
        write_predictions(tmp_path / "p.parquet", [ragged], metadata)
    with pytest.raises(DataError, match="no atoms"):
        write_predictions(tmp_path / "p.parquet", [], metadata)


def test_other_missing_and_damaged_files_are_refused(tmp_path, block, metadata):
    path = tmp_path / "p.parquet"
    with pytest.raises(DataError, match="no such file"):
        predictions_metadata(path)
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(DataError, match="not written by forceuq"):
        predictions_metadata(path)
    label = {b"forceuq": b'{"schema": "predictions", "version": 2}'}
    pq.write_table(pa.table({"x": [1]}).replace_schema_metadata(label), path)
    with pytest.raises(DataError, match="version 2"):
        predictions_metadata(path)
    write_predictions(path, [block(2000)], metadata)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="not a whole Parquet file"):
        list(read_predictions(path))
