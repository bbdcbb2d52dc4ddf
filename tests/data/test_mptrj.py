import copy
import json

import numpy as np
import pytest
from pydantic import ValidationError

from forceuq.data.sources.mptrj import PARTS, Options, convert, parts, split, tasks
from forceuq.data.splits import PartRef, part_counts, read_part
from forceuq.data.structures import read_columns, read_structures, report_path
from forceuq.errors import DataError

# Energies above relaxed, eV/atom: at and on both sides of each boundary, and below zero.
ABOVE = [-0.01, 0.0, 0.004999, 0.005001, 0.017499, 0.017501, 0.069999, 0.070001, 1.0]
STRATUM = ["id", "id", "id", "near", "near", "mid", "mid", "far", "far"]


def record(material, above, scale=1.0):
    sites = [
        {"species": [{"element": e, "occu": 1}], "abc": [0, 0, 0], "xyz": [i, 0.5, 0], "label": e, "properties": {}}
        for i, e in enumerate(("Na", "Cl"))
    ]
    return {
        "structure": {"lattice": {"matrix": [[4 * scale, 0, 0], [0, 5, 0], [0, 1, 6]]}, "sites": sites},
        "uncorrected_total_energy": -7.5,
        "corrected_total_energy": -8.5,
        "energy_per_atom": -4.25 + above,
        "e_per_atom_relaxed": -4.25,
        "force": [[0.1, 0, -0.2], [-0.1, 0, 0.2]],
        "stress": [[0, 0, 0]] * 3,
        "magmom": None,
        "bandgap": 0.0,
        "mp_id": material,
    }


def materials(n=20):
    return {f"mp-{m}": {f"mp-{m}-0-{i}": record(f"mp-{m}", e) for i, e in enumerate(ABOVE)} for m in range(n)}


def read(folder, data, options=Options()):  # noqa: B008 - frozen
    folder.mkdir(exist_ok=True)
    (folder / "raw").write_text(data if isinstance(data, str) else json.dumps(data))
    convert(folder / "raw", folder / "s.parquet", options)
    return folder / "s.parquet"


def cut(folder, data, options=Options()):  # noqa: B008 - frozen
    """Return the part of each structure."""
    structures = read(folder, data)
    split(structures, folder / "splits", options)
    ids = read_columns(structures, ["structure_id"]).column(0).to_pylist()
    return {ids[row]: part for part in PARTS for row in read_part(folder / "splits", part)}


def test_a_frame_is_read_with_its_labels(tmp_path):
    items = [item for _, item in read_structures(read(tmp_path, materials(2)))]
    assert [item.structure_id for item in items][:2] == ["mp-0-0-0", "mp-0-0-1"]
    item = items[-1]
    assert item.group_id == "mp-1"
    assert item.numbers.tolist() == [11, 17]
    np.testing.assert_array_equal(item.positions, [[0, 0.5, 0], [1, 0.5, 0]])
    np.testing.assert_array_equal(item.cell, [[4, 0, 0], [0, 5, 0], [0, 1, 6]])
    np.testing.assert_array_equal(item.forces, [[0.1, 0, -0.2], [-0.1, 0, 0.2]])
    assert item.pbc
    assert item.energy == -8.5
    assert item.energy_above_relaxed == pytest.approx(1.0)


def test_parts_by_material_and_stratum(tmp_path):
    found = cut(tmp_path, materials())
    use = {}
    for m in range(20):
        names = [f"mp-{m}-0-{i}" for i in range(len(ABOVE))]
        inside = [found.get(name) for name in names]
        if inside == STRATUM:
            use[m] = "test"
        else:
            assert inside in (["train"] * 3 + [None] * 6, ["val"] * 3 + [None] * 6)
            use[m] = inside[0]
    assert [list(use.values()).count(name) for name in ("train", "val", "test")] == [16, 2, 2]
    assert part_counts(tmp_path / "splits") == {"train": 48, "val": 6, "id": 6, "near": 4, "mid": 4, "far": 4}


def test_the_split_depends_on_seed_and_set_of_materials_only(tmp_path):
    data = materials()
    first = cut(tmp_path / "a", data)
    assert cut(tmp_path / "b", dict(reversed(data.items()))) == first
    fewer = {m: dict(list(frames.items())[::2]) for m, frames in data.items()}
    shared = cut(tmp_path / "c", fewer)
    assert shared == {name: first[name] for name in shared}
    assert cut(tmp_path / "d", data, Options(seed=2)) != first


def test_an_empty_part_is_an_error_that_names_it(tmp_path):
    data = {m: {f: r for f, r in frames.items() if f[-1] in "012348"} for m, frames in materials().items()}
    with pytest.raises(DataError, match="part 'mid'"):
        cut(tmp_path, data)
    assert not (tmp_path / "splits").exists()


def damage(path, value):
    def do(frame):
        *keys, last = path
        for key in keys:
            frame = frame[key]
        if value is KeyError:
            del frame[last]
        else:
            frame[last] = value

    return do


SITE = ("structure", "sites", 0)


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("force",), [[0.1, 0, 0], [0.1, 0]], "inhomogeneous"),
        (("force",), [[0.1, 0, 0]], "forces have the shape"),
        (("force",), [[0.1, 0, 0], [0.1, 0, None]], "forces"),
        (("force",), None, "force is null"),
        (("force",), KeyError, "no force"),
        (("corrected_total_energy",), None, "corrected_total_energy is None"),
        (("e_per_atom_relaxed",), None, "e_per_atom_relaxed is None"),
        (("energy_per_atom",), KeyError, "no energy_per_atom"),
        (("structure", "lattice", "matrix"), [[1, 0, 0], [0, 1, 0], [0, 0, 0]], "cell of no volume"),
        (("structure", "sites"), [], "no atoms"),
        ((*SITE, "species", 0, "element"), "Zz", "unknown element 'Zz'"),
        ((*SITE, "species", 0, "occu"), 0.5, "partial"),
        ((*SITE, "xyz"), [0, 0], "inhomogeneous"),
        (("structure",), None, "NoneType"),
    ],
)
def test_a_damaged_frame_is_left_out_with_id_and_reason(tmp_path, path, value, reason):
    data = copy.deepcopy(materials(12))
    damage(path, value)(data["mp-3"]["mp-3-0-1"])
    structures = read(tmp_path, data)
    report = json.loads(report_path(structures).read_text())
    assert report["written"] == 12 * 9 - 1
    assert [entry["id"] for entry in report["rejected"]] == ["mp-3-0-1"]
    assert reason in report["rejected"][0]["reason"]


def test_too_many_damaged_frames_are_an_error(tmp_path):
    data = materials(2)
    data["mp-1"]["mp-1-0-0"]["force"] = None
    with pytest.raises(DataError, match=r"1 of 18 structures .* force is null"):
        read(tmp_path, data)
    assert not (tmp_path / "s.parquet").exists()


@pytest.mark.parametrize("text", ["", "{", json.dumps(materials(2))[:-3], "[1, 2]", "{}", '{"mp-1": NaN}'])
def test_a_damaged_file_is_an_error(tmp_path, text):
    with pytest.raises(DataError):
        read(tmp_path, text)
    assert not (tmp_path / "s.parquet").exists()


def test_options_are_checked():
    with pytest.raises(ValidationError, match="does not increase"):
        Options(strata=(0.1, 0.05, 0.2))
    with pytest.raises(ValidationError, match="sum to 1"):
        Options(fractions=(0.8, 0.1, 0.2))
    with pytest.raises(ValidationError):
        Options(boundaries=(1, 2, 3))


def test_the_task(tmp_path):
    (task,) = tasks("x", Options())
    assert task.name == "mptrj"
    assert (task.train, task.validation) == ((PartRef("x", "train"),), (PartRef("x", "val"),))
    assert task.evaluate == {name: (PartRef("x", name),) for name in ("id", "near", "mid", "far")}
    assert parts(Options()) == PARTS
