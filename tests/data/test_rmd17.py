import io
import pickle
import tarfile

import numpy as np
import pytest
from pydantic import ValidationError

from forceuq.data.sources.rmd17 import MOLECULES, Options, convert, parts, split, tasks
from forceuq.data.splits import PartRef, read_part
from forceuq.data.structures import read_columns, read_structures, report_path
from forceuq.errors import DataError

OPTIONS = Options(molecules=("water", "ammonia"), validation_fraction=0.25)
TRAIN, TEST = [5, 3, 9, 0, 11, 14, 2, 7], [1, 19, 4]


def arrays(seed, numbers, **changes):
    random = np.random.default_rng(seed)
    n = len(numbers)
    values = {
        "nuclear_charges": np.array(numbers, dtype=np.uint8),
        "coords": random.normal(size=(20, n, 3)),
        "energies": random.normal(size=20),
        "forces": random.normal(size=(20, n, 3)),
        "old_energies": random.normal(size=20),
    }
    return {key: value for key, value in {**values, **changes}.items() if value is not None}


WATER, AMMONIA = arrays(0, [8, 1, 1]), arrays(1, [7, 1, 1, 1])


def npz(values):
    buffer = io.BytesIO()
    np.savez(buffer, **values)
    return buffer.getvalue()


def members(water=WATER, ammonia=AMMONIA, train=TRAIN, test=TEST):
    return {
        "rmd17/npz_data/rmd17_water.npz": npz(water),
        "rmd17/npz_data/rmd17_ammonia.npz": npz(ammonia),
        "rmd17/splits/index_train_01.csv": "\n".join(map(str, train)).encode(),
        "rmd17/splits/index_test_01.csv": "\n".join(map(str, test)).encode(),
    }


def pack(path, contents, extra=()):
    with tarfile.open(path, "w:bz2") as archive:
        for member in extra:
            archive.addfile(member)
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("reverse", [False, True])
def test_frames_of_the_index_split_in_electronvolts(tmp_path, reverse):
    contents = dict(sorted(members().items(), reverse=reverse))  # the csv files after and before the npz files
    convert(pack(tmp_path / "raw", contents), tmp_path / "s.parquet", OPTIONS)
    found = {item.structure_id: item for _, item in read_structures(tmp_path / "s.parquet")}
    assert len(found) == 2 * (len(TRAIN) + len(TEST))
    item = found["rmd17-ammonia-000019"]
    assert item.numbers.tolist() == [7, 1, 1, 1]
    assert item.group_id == "ammonia"
    assert not item.pbc
    np.testing.assert_array_equal(item.positions, AMMONIA["coords"][19])
    np.testing.assert_allclose(item.forces, AMMONIA["forces"][19] * 0.0433641153, rtol=1e-12)
    assert item.energy == pytest.approx(AMMONIA["energies"][19] * 0.0433641153, rel=1e-12)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw", "s.parquet", "s.parquet.report.json"]


def part_ids(folder, name, part):
    ids = read_columns(folder / "s.parquet", ["structure_id"]).column(0).to_pylist()
    return [ids[row] for row in read_part(folder / name, f"water-{part}")]


def test_parts_follow_the_published_split(tmp_path):
    convert(pack(tmp_path / "raw", members()), tmp_path / "s.parquet", OPTIONS)
    split(tmp_path / "s.parquet", tmp_path / "a", OPTIONS)
    found = {part: part_ids(tmp_path, "a", part) for part in ("train", "val", "test")}
    index = {part: {int(name[-6:]) for name in names} for part, names in found.items()}
    assert index["test"] == set(TEST)
    assert index["train"] | index["val"] == set(TRAIN)
    assert len(index["val"]) == 2
    assert not index["train"] & index["val"]
    assert all(name.startswith("rmd17-water-") for names in found.values() for name in names)


def test_validation_depends_on_seed_and_set_only(tmp_path):
    for name, order in (("one", TRAIN), ("two", TRAIN[::-1])):
        (tmp_path / name).mkdir()
        convert(pack(tmp_path / name / "raw", members(train=order)), tmp_path / name / "s.parquet", OPTIONS)
        split(tmp_path / name / "s.parquet", tmp_path / name / "a", OPTIONS)
    first = part_ids(tmp_path / "one", "a", "val")
    assert part_ids(tmp_path / "two", "a", "val") == first
    others = set()
    for seed in range(1, 6):
        split(tmp_path / "one/s.parquet", tmp_path / "one/b", OPTIONS.model_copy(update={"validation_seed": seed}))
        others.add(tuple(part_ids(tmp_path / "one", "b", "val")))
    assert others != {tuple(first)}


def test_tasks_and_parts_from_options_alone():
    options = Options(molecules=("a", "b", "c"), training_molecules=("b",))
    (task,) = tasks("set", options)
    assert task.name == "b"
    assert task.train == (PartRef("set", "b-train"),)
    assert task.validation == (PartRef("set", "b-val"),)
    assert task.evaluate == {
        "id": (PartRef("set", "b-test"),),
        "ood": (PartRef("set", "a-test"), PartRef("set", "c-test")),
    }
    assert parts(options)[:3] == ("a-train", "a-val", "a-test")
    assert [task.name for task in tasks("set", Options())] == list(MOLECULES)


def test_options_are_checked():
    with pytest.raises(ValidationError, match="'ethanoll' is not among molecules; nearest: ethanol"):
        Options(training_molecules=("ethanoll",))
    with pytest.raises(ValidationError, match="twice"):
        Options(molecules=("a", "a"))
    with pytest.raises(ValidationError, match="not a molecule's name"):
        Options(molecules=("../a",))
    with pytest.raises(ValidationError):
        Options(split=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(molecules=("watre",)), "rmd17_watre.npz is not in the archive; nearest there: rmd17_water.npz"),
        (
            Options(molecules=("water",), split_index=2),
            "index_train_02.csv is not in the archive; nearest there: index_",
        ),
    ],
)
def test_what_is_missing_is_named_with_the_nearest(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        convert(pack(tmp_path / "raw", members()), tmp_path / "s.parquet", options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": [0, 1]}, "1 frames, such as 1, are in both"),
        ({"train": [0, 20]}, "asks for frame 20, but there are 20"),
        ({"train": [0, 0]}, "repeated"),
        ({"train": []}, "empty"),
        ({"train": ["x"]}, "not one integer a line"),
        ({"water": arrays(0, [8, 1, 1], forces=None)}, r"no array \['forces'\]"),
        ({"water": arrays(0, [8, 1]) | {"coords": np.zeros((20, 3, 3))}}, r"coords has the shape \(20, 3, 3\)"),
        ({"water": arrays(0, [8, 1, 1], energies=np.array([object()] * 20))}, "allow_pickle"),
        ({"water": arrays(0, [8, 1, 1], energies=np.array(1.0))}, "energies is a single value"),
        ({"water": arrays(0, [8, 1, 1], nuclear_charges=np.array(8))}, "nuclear_charges is a single value"),
        ({"water": arrays(0, [8, 1, 1], nuclear_charges=np.array([8, 1.5, 1]))}, r"no integers: \[8\. +1\.5 1\. \]"),
        ({"water": arrays(0, [8, 1, 1], forces=np.ones((20, 3, 3)) * 1j)}, "forces holds complex128, not real"),
        ({"water": arrays(0, [8, 1, 1], forces=np.full((20, 3, 3), "1"))}, "forces holds <U1, not real"),
    ],
)
def test_damaged_content_is_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        convert(pack(tmp_path / "raw", members(**changes)), tmp_path / "s.parquet", OPTIONS)
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]


def test_a_pickle_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    contents = {**members(), "rmd17/npz_data/rmd17_water.npz": pickle.dumps(Bomb())}
    with pytest.raises(DataError, match=r"rmd17_water\.npz"):
        convert(pack(tmp_path / "raw", contents), tmp_path / "s.parquet", OPTIONS)


def test_non_finite_frames_are_counted(tmp_path):
    forces = WATER["forces"].copy()
    forces[9, 1, 2] = np.nan
    raw = pack(tmp_path / "raw", members(water={**WATER, "forces": forces}))
    with pytest.raises(DataError, match="1 of 22"):
        convert(raw, tmp_path / "s.parquet", OPTIONS)
    convert(raw, tmp_path / "s.parquet", OPTIONS.model_copy(update={"max_bad_fraction": 0.1}))
    assert "rmd17-water-000009" in report_path(tmp_path / "s.parquet").read_text()


@pytest.mark.parametrize("keep", [0, 60, 0.5, 0.98])
def test_a_truncated_archive_is_refused(tmp_path, keep):
    raw = pack(tmp_path / "raw", members())
    whole = raw.read_bytes()
    raw.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    with pytest.raises(DataError, match="raw"):
        convert(raw, tmp_path / "s.parquet", OPTIONS)
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]


def test_a_corrupted_archive_is_refused(tmp_path):
    raw = pack(tmp_path / "raw", members())
    content = bytearray(raw.read_bytes())
    content[len(content) // 2] ^= 0xFF
    raw.write_bytes(content)
    with pytest.raises(DataError, match="not a whole tar or zip archive"):
        convert(raw, tmp_path / "s.parquet", OPTIONS)


def unsafe(name, kind=tarfile.REGTYPE, link=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


@pytest.mark.parametrize(
    "member",
    [
        unsafe("/rmd17_x.npz"),
        unsafe("rmd17/../../rmd17_x.npz"),
        unsafe("rmd17/rmd17_x.npz", tarfile.SYMTYPE, "/etc/passwd"),
        unsafe("rmd17/rmd17_x.npz", tarfile.LNKTYPE, "other"),
    ],
)
def test_unsafe_members_are_refused(tmp_path, member):
    with pytest.raises(DataError, match="rmd17_x"):
        convert(pack(tmp_path / "raw", members(), extra=[member]), tmp_path / "s.parquet", OPTIONS)


def test_the_index_split_must_be_that_of_the_structures(tmp_path):
    convert(pack(tmp_path / "raw", members()), tmp_path / "s.parquet", OPTIONS)
    with pytest.raises(DataError, match="index split 1, not 'rmd17', index split 2"):
        split(tmp_path / "s.parquet", tmp_path / "a", OPTIONS.model_copy(update={"split_index": 2}))
