import io
import json
import tarfile
import zlib

import lmdb
import pytest
from ase.db import connect
from frames import assert_read, frame, no_traces

from forceuq.data.sources.alexandria import Options, convert, parts, split, tasks
from forceuq.data.splits import read_part
from forceuq.data.structures import read_structures, report_path
from forceuq.errors import DataError

FORMULAE = ("NaCl", "MgO2", "Fe2O3")


def database(path, frames):
    """Write an ASE database on LMDB and give it the size it needs (LMDB itself maps far more)."""
    with connect(path, type="aselmdb") as handle:
        for atoms in frames:
            handle.write(atoms, data={"sid": "agm1"})
    return path.read_bytes()


@pytest.fixture(scope="module")
def databases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("databases")
    return {
        f"data.{i:04d}": database(folder / f"{i}.aselmdb", [frame(f, seed=10 * i + j) for j, f in enumerate(FORMULAE)])
        for i in range(2)
    }


def pack(path, contents, mode="w:gz", folder="val/"):
    with tarfile.open(path, mode) as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(folder + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def read(folder, contents, options=Options(), mode="w:gz"):  # noqa: B008 - frozen
    pack(folder / "raw", contents, mode)
    convert(folder / "raw", folder / "s.parquet", options)
    return [item for _, item in read_structures(folder / "s.parquet")]


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_every_row_of_every_database_is_read(tmp_path, databases, mode):
    contents = {f"{name}.aselmdb": content for name, content in databases.items()}
    other = {"metadata.npz": b"x", "data.0000.aselmdb-lock": b""}
    items = read(tmp_path, contents | other, Options(max_bad_fraction=0), mode)
    assert [item.structure_id for item in items] == [f"data.{i:04d}-{j}" for i in (0, 1) for j in (1, 2, 3)]
    for number, item in enumerate(items):
        assert_read(item, frame(FORMULAE[number % 3], seed=10 * (number // 3) + number % 3), atol=1e-12)
        assert item.group_id == item.structure_id
    assert no_traces(tmp_path)
    split(tmp_path / "s.parquet", tmp_path / "splits", Options())
    assert read_part(tmp_path / "splits", "all").tolist() == list(range(6))


def test_it_is_evaluated_on_only():
    assert tasks("alex", Options()) == ()
    assert parts(Options()) == ("all",)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (frame("NaCl", forces=None), "no forces"),
        (frame("NaCl", forces=[[0.0, 0.0, float("nan")]] * 2), "forces not finite"),
        (frame("XCl"), "unknown element"),
        (frame("NaCl", pbc=(True, True, False)), "some directions"),
    ],
    ids=["no forces", "not finite", "element", "slab"],
)
def test_a_damaged_row_is_left_out_with_id_and_reason(tmp_path, bad, reason):
    content = database(tmp_path / "x.aselmdb", [frame("NaCl"), bad, frame("MgO")])
    items = read(tmp_path, {"x.aselmdb": content}, Options(max_bad_fraction=0.5))
    assert [item.structure_id for item in items] == ["x-1", "x-3"]
    (rejected,) = json.loads(report_path(tmp_path / "s.parquet").read_text())["rejected"]
    assert rejected["id"] == "x-2"
    assert reason in rejected["reason"]


@pytest.mark.parametrize("value", [b"not compressed", zlib.compress(b"not JSON"), zlib.compress(b'{"numbers": [1]}')])
def test_a_row_that_cannot_be_decoded_is_left_out(tmp_path, value):
    database(tmp_path / "x.aselmdb", [frame("NaCl"), frame("NaCl", seed=1)])
    with (
        lmdb.open(str(tmp_path / "x.aselmdb"), subdir=False, map_size=2**24) as handle,
        handle.begin(write=True) as txn,
    ):
        txn.put(b"2", value)
    items = read(tmp_path, {"x.aselmdb": (tmp_path / "x.aselmdb").read_bytes()}, Options(max_bad_fraction=0.5))
    assert [item.structure_id for item in items] == ["x-1"]


def test_ragged_forces_are_left_out(tmp_path):
    from ase.db.row import AtomsRow

    row = AtomsRow(frame("NaCl"))
    row.forces = [[0.0, 0.0, 0.0], [0.0, 0.0]]
    with connect(tmp_path / "x.aselmdb", type="aselmdb") as handle:
        handle.write(frame("NaCl"))
        handle.write(row)
    content = (tmp_path / "x.aselmdb").read_bytes()
    with pytest.raises(DataError, match=r"1 of 2 structures .* x-2: "):
        read(tmp_path, {"x.aselmdb": content})


def test_a_damaged_database_is_an_error_that_names_it(tmp_path, databases):
    content = databases["data.0000"]
    for damaged in (content[: len(content) // 2], content[:-4096], b"", b"x" * 9000):
        with pytest.raises(DataError, match=r"val/b\.aselmdb: not a whole LMDB database"):
            read(tmp_path, {"a.aselmdb": content, "b.aselmdb": damaged}, Options(max_bad_fraction=1))
        assert not (tmp_path / "s.parquet").exists()
        assert no_traces(tmp_path)


def test_a_damaged_archive_is_an_error(tmp_path, databases):
    pack(tmp_path / "whole", {f"{name}.aselmdb": content for name, content in databases.items()})
    content = (tmp_path / "whole").read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    for damaged in (content[: len(content) // 2], content[:-20], bytes(flipped), b""):
        (tmp_path / "raw").write_bytes(damaged)
        with pytest.raises(DataError, match="raw"):
            convert(tmp_path / "raw", tmp_path / "s.parquet", Options(max_bad_fraction=1))
        assert not (tmp_path / "s.parquet").exists()


def test_an_archive_without_databases_or_with_two_of_a_name(tmp_path, databases):
    content = databases["data.0000"]
    with pytest.raises(DataError, match=r"no \.aselmdb in the archive"):
        read(tmp_path, {"README.md": b"x"})
    with pytest.raises(DataError, match="two databases of this name"):
        read(tmp_path, {"a/x.aselmdb": content, "b/x.aselmdb": content})
    with pytest.raises(DataError, match="unsafe path"):
        read(tmp_path, {"../../x.aselmdb": content})
