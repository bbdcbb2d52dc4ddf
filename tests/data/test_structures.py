import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forceuq.data.structure_columns import columns_table, structure_columns
from forceuq.data.structures import (
    ROW_GROUP,
    StructureWriter,
    fault,
    open_parquet,
    read_columns,
    read_structures,
    report_path,
    structure,
    structures_metadata,
)
from forceuq.errors import DataError


def example(i: int, n: int = 3, **changes):
    rng = np.random.default_rng(i)
    values = {
        "numbers": rng.integers(1, 100, n),
        "positions": rng.normal(size=(n, 3)),
        "forces": rng.normal(size=(n, 3)),
        "cell": np.diag([3.0, 4.0, 5.0]) if i % 2 else None,
        "energy": None if i % 3 == 0 else float(i),
        "energy_above_relaxed": 0.1 * i if i % 2 else None,
    }
    return structure(f"s{i:05d}", f"g{i // 4}", **{**values, **changes})


def same(a, b) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        if isinstance(getattr(a, name), np.ndarray)
        else getattr(a, name) == getattr(b, name)
        for name in a.__dataclass_fields__
    )


def write(path, items, **kwargs):
    with StructureWriter(path, **kwargs) as writer:
        for item in items:
            writer.add(item)
    return path


def test_round_trip_is_exact_over_row_groups(tmp_path):
    items = [example(i, 1 + i % 5) for i in range(ROW_GROUP * 2 + 7)]
    path = write(tmp_path / "s.parquet", items, metadata={"source": "test"})
    assert structures_metadata(path) == {
        "schema": "structures", "version": 1, "source": "test", "structures": len(items),
    }  # fmt: skip
    back = list(read_structures(path))
    assert [row for row, _ in back] == list(range(len(items)))
    assert all(same(a, b) for a, (_, b) in zip(items, back, strict=True))
    assert pq.ParquetFile(path).metadata.num_row_groups == 3
    report = json.loads(report_path(path).read_text())
    assert report == {
        "written": len(items),
        "atoms": sum(map(len, items)),
        "n_rejected": 0,
        "rejected": [],
        "warnings": [],
    }


def test_row_groups_are_bounded_by_atoms_however_the_rows_come(tmp_path, monkeypatch):
    monkeypatch.setattr("forceuq.data.structures.ROW_GROUP_ATOMS", 20)
    sizes = [3, 3, 14, 25, 1, 18, 30, 5, 5]
    items = [example(i, n) for i, n in enumerate(sizes)]
    path = write(tmp_path / "s.parquet", items)
    metadata = pq.ParquetFile(path).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [3, 1, 3, 2]
    assert all(same(a, b) for a, (_, b) in zip(items, read_structures(path), strict=True))
    for pieces in ((9,), (2, 7), (1, 5, 3)):
        with StructureWriter(tmp_path / "t.parquet") as writer:
            rest = iter(items)
            for piece in pieces:
                writer.add_table(columns_table([structure_columns([next(rest) for _ in range(piece)])]))
        assert (tmp_path / "t.parquet").read_bytes() == path.read_bytes()


def test_only_the_rows_asked_for(tmp_path):
    items = [example(i) for i in range(ROW_GROUP + 20)]
    path = write(tmp_path / "s.parquet", items)
    rows = [0, 5, ROW_GROUP - 1, ROW_GROUP, ROW_GROUP + 19]
    back = list(read_structures(path, rows))
    assert [row for row, _ in back] == rows
    assert all(same(items[row], item) for row, item in back)
    assert list(read_structures(path, [])) == []
    with pytest.raises(DataError, match="another structures file"):
        list(read_structures(path, [ROW_GROUP + 20]))
    with pytest.raises(ValueError, match="increasing"):
        list(read_structures(path, [3, 3]))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"numbers": [], "positions": np.zeros((0, 3)), "forces": np.zeros((0, 3))}, "no atoms"),
        ({"numbers": [1, 2, 119]}, "unknown element"),
        ({"numbers": [0, 2, 3]}, "unknown element"),
        ({"positions": np.zeros((2, 3))}, "positions have the shape"),
        ({"forces": np.zeros((3, 2))}, "forces have the shape"),
        ({"forces": np.full((3, 3), np.nan)}, "forces not finite"),
        ({"positions": np.full((3, 3), np.inf)}, "positions not finite"),
        ({"energy": float("nan")}, "energy not finite"),
        ({"energy_above_relaxed": float("inf")}, "energy_above_relaxed not finite"),
        ({"cell": np.diag([1.0, 1.0, 0.0])}, "no volume"),
        ({"cell": np.eye(2)}, "cell have the shape"),
        ({"positions": [[0, 0, 0], [1, 1, 1], [0, 0, 0]]}, "two atoms at one position"),
        ({"positions": [[0, 0, 0], [1, 1, 1], [3, 0, 0]]}, "two atoms at one position"),
        ({"positions": [[2, 0, 0], [1, 1, 1], [-1, 4, -15 + 1e-7]]}, "two atoms at one position"),
        ({"positions": [[1, 1, 1], [0, 0, 0], [1, 1, 1]], "cell": None}, "two atoms at one position"),
    ],
)
def test_damaged_structures_are_named(changes, reason):
    assert reason in (fault(example(1, **changes)) or "")


def test_names_that_are_no_text_are_faults():
    for name in ("caf\udce9-000000", "\ud800"):
        assert "no text" in (fault(replace(example(1), structure_id=name)) or "")
        assert "no text" in (fault(replace(example(1), group_id=name)) or "")


def test_close_atoms_and_images_without_a_cell_have_no_fault():
    for positions in ([[0, 0, 0], [0, 0, 1e-4], [0, 1e-4, 0]], [[0, 0, 0], [1.5, 2, 2.5], [1.5, 2, 0]]):
        assert fault(example(1, positions=positions)) is None
    assert fault(example(2, positions=[[0, 0, 0], [3, 0, 0], [0, 4, 0]], cell=None)) is None


def test_sound_structures_have_no_fault():
    assert fault(example(1)) is None
    assert fault(example(2)) is None


def test_bad_ones_are_left_out_and_counted(tmp_path):
    bad = replace(example(0), structure_id="bad", forces=np.full((3, 3), np.nan))
    path = tmp_path / "s.parquet"
    with StructureWriter(path, max_bad_fraction=0.5) as writer:
        assert writer.add(example(1))
        assert writer.add(example(2))
        assert writer.add(example(3))
        assert not writer.add(bad)
        assert not writer.add(example(2))
        writer.reject("torn", "no such key")
    report = json.loads(report_path(path).read_text())
    assert report["written"] == 3
    assert report["n_rejected"] == 3
    assert report["rejected"] == [
        {"id": "bad", "reason": "forces not finite"},
        {"id": "s00002", "reason": "duplicate structure_id"},
        {"id": "torn", "reason": "no such key"},
    ]
    assert read_columns(path, ["structure_id"]).column(0).to_pylist() == ["s00001", "s00002", "s00003"]


def test_too_many_bad_ones_leave_no_file(tmp_path):
    def attempt():
        with StructureWriter(tmp_path / "s.parquet", max_bad_fraction=0.1) as writer:
            for i in range(8):
                writer.add(example(i))
            writer.reject("x1", "torn")

    with pytest.raises(DataError, match=r"1 of 9 structures are damaged.*torn \(1\).*x1: torn"):
        attempt()
    assert list(tmp_path.iterdir()) == []


def test_no_structures_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no usable structure"), StructureWriter(tmp_path / "s.parquet"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_exception_leaves_no_file(tmp_path):
    def attempt():
        with StructureWriter(tmp_path / "s.parquet") as writer:
            writer.add(example(1))
            raise KeyError("elsewhere")

    with pytest.raises(KeyError):
        attempt()
    assert list(tmp_path.iterdir()) == []


def test_bytes_depend_on_the_structures_alone(tmp_path):
    items = [example(i) for i in range(30)]
    a = write(tmp_path / "a.parquet", items).read_bytes()
    assert a == write(tmp_path / "b.parquet", items).read_bytes()


def test_other_schemas_and_damage_are_refused(tmp_path):
    path = write(tmp_path / "s.parquet", [example(i) for i in range(5)])
    with pytest.raises(DataError, match="version 2"):
        open_parquet(path, "structures", 2)
    with pytest.raises(DataError, match="'splits'"):
        open_parquet(path, "splits", 1)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    with pytest.raises(DataError, match="foreign"):
        next(read_structures(tmp_path / "foreign.parquet"))
    (tmp_path / "half.parquet").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="not a whole Parquet"):
        next(read_structures(tmp_path / "half.parquet"))
    with pytest.raises(DataError, match="no such file"):
        structures_metadata(tmp_path / "none.parquet")


def test_no_flipped_bit_changes_a_structure(tmp_path):
    items = [example(i, 20) for i in range(10)]
    path = write(tmp_path / "s.parquet", items, metadata={"source": "test"})
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    named = 0
    for at in rng.choice(len(whole), 300, replace=False):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            back = [item for _, item in read_structures(path)]
        except DataError as error:
            named += error.file == str(path)
        else:
            # In bytes that nothing depends on, as statistics.
            assert len(back) == len(items)
            assert all(map(same, items, back))
    assert named > 200


def test_as_ase_atoms():
    periodic, molecule = example(1).atoms(), example(2).atoms()
    assert periodic.pbc.all()
    assert np.allclose(periodic.cell[:], np.diag([3, 4, 5]))
    assert not molecule.pbc.any()
    assert np.array_equal(molecule.positions, example(2).positions)
