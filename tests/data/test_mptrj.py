import copy
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from forceuq.data.sources._mptrj_frames import _as_published, _structure, read_materials
from forceuq.data.sources.mptrj import PARTS, Options, convert, parts, split, tasks
from forceuq.data.splits import PartRef, part_counts, read_part
from forceuq.data.structure_blocks import StructureBlock
from forceuq.data.structure_faults import fault
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
        (("force",), [[0.1, 0, 0], [0.1, 0, float("nan")]], "forces not finite"),
        (("force",), float("nan"), "forces have the shape ()"),
        ((*SITE, "xyz"), [float("inf"), 0, 0], "positions not finite"),
        ((*SITE, "species", 0, "occu"), float("nan"), "partial or mixed occupation"),
        (("structure", "lattice", "matrix"), [[1, 0, 0], [0, 1, 0], [0, 0, -float("inf")]], "cell not finite"),
        (("corrected_total_energy",), float("nan"), "energy not finite"),
        (("e_per_atom_relaxed",), float("nan"), "energy_above_relaxed not finite"),
        (("structure",), float("nan"), "float"),
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


def test_nan_in_what_is_not_read_costs_nothing(tmp_path):
    plain = read(tmp_path / "a", materials(2))
    data = materials(2)
    frame = data["mp-1"]["mp-1-0-0"]
    frame.update(bandgap=float("nan"), magmom=[float("inf"), -float("inf")])
    frame["structure"]["sites"][0]["properties"] = {"charge": float("nan")}
    assert read(tmp_path / "b", data).read_bytes() == plain.read_bytes()
    assert report_path(tmp_path / "b/s.parquet").read_text() == report_path(plain).read_text()


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


def test_the_file_depends_on_neither_processes_nor_pieces(tmp_path, monkeypatch):
    data = copy.deepcopy(materials(120))
    data["mp-3"]["mp-3-0-1"]["force"] = None
    data["mp-60"] = None
    data["mp-61"] = {}
    data["mp-119"]["mp-0-0-3"] = data["mp-0"]["mp-0-0-3"]  # in another piece than the first of this id
    data["mp-119"]["mp-119-0-8"]["structure"]["sites"][0]["xyz"][0] = 1e200
    options = Options(max_bad_fraction=0.5)
    one = read(tmp_path / "one", data, options)
    monkeypatch.setattr("forceuq.data.sources.mptrj._PIECE", 20_000)
    many = tmp_path / "many.parquet"
    convert(tmp_path / "one/raw", many, options, threads=2)
    assert many.read_bytes() == one.read_bytes()
    report = json.loads(report_path(many).read_text())
    assert report == json.loads(report_path(one).read_text())
    assert [(entry["id"], entry["reason"]) for entry in report["rejected"]] == [
        ("mp-3-0-1", "force is null"),
        ("mp-60", "not an object of frames"),
        ("mp-61", "not an object of frames"),
        ("mp-0-0-3", "duplicate structure_id"),
    ]
    # A thousand structures are in the first of its row groups, whatever the pieces.
    assert report["written"] == 118 * 9 - 1
    assert pq.ParquetFile(many).metadata.row_group(0).num_rows == 1000


def test_a_repeated_material_is_not_lost(tmp_path):
    (first, frames), (_, others) = materials(2).items()
    text = f'{{"{first}": {json.dumps(frames)}, "{first}": {json.dumps(others)}}}'
    assert len(list(read_structures(read(tmp_path, text)))) == 18


def test_two_atoms_at_one_position_are_found_among_frames_that_are_as_published(tmp_path):
    data = materials(40)
    plain = read(tmp_path / "a", data).read_bytes()
    data["mp-7"]["mp-7-0-3"]["structure"]["sites"][0]["xyz"] = [1 + 4, 0.5 + 5 + 1, 6]  # the other atom's image
    structures = read(tmp_path / "b", data)
    report = json.loads(report_path(structures).read_text())
    assert report["rejected"] == [{"id": "mp-7-0-3", "reason": "two atoms at one position"}]
    assert report["written"] == 40 * 9 - 1
    whole, rest = (
        {s.structure_id: s.positions.tolist() for _, s in read_structures(tmp_path / f"{name}/s.parquet")}
        for name in "ab"
    )
    assert whole.pop("mp-7-0-3")
    assert whole == rest
    assert read(tmp_path / "c", materials(40)).read_bytes() == plain


def test_a_repeated_frame_of_a_material_is_counted(tmp_path):
    data = materials(2)
    data["mp-1"]["mp-1-0-4"]["corrected_total_energy"] = -99.0
    structures = read(tmp_path, json.dumps(data).replace('"mp-1-0-4"', '"mp-1-0-2"'), Options(max_bad_fraction=0.1))
    report = json.loads(report_path(structures).read_text())
    assert (report["written"], report["n_rejected"]) == (17, 1)
    assert report["rejected"] == [{"id": "mp-1-0-2", "reason": "duplicate structure_id"}]
    assert -99.0 not in [item.energy for _, item in read_structures(structures)]


def test_a_frame_whose_id_is_no_text_is_left_out(tmp_path):
    data = materials(12)
    data["mp-1"]["\ud800"] = data["mp-1"].pop("mp-1-0-2")
    report = json.loads(report_path(read(tmp_path, data)).read_text())
    assert report["written"] == 12 * 9 - 1
    assert report["rejected"][0]["id"] == "\ud800"


def test_damage_is_told_by_a_process_with_file_and_place(tmp_path, monkeypatch):
    monkeypatch.setattr("forceuq.data.sources.mptrj._PIECE", 20_000)
    text = json.dumps(materials(40))
    at = text.index('"mp-30"')
    (tmp_path / "raw").write_text(text[: at + 300] + "?" + text[at + 300 :])
    with pytest.raises(DataError, match=rf"raw: not a whole JSON file \(in the material at byte {at}: "):
        convert(tmp_path / "raw", tmp_path / "s.parquet", Options(), threads=2)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_numbers_are_those_of_the_text(tmp_path):
    rng = np.random.default_rng(0)
    force = (rng.normal(size=(2, 3)) * 10.0 ** rng.integers(-12, 3, (2, 3))).tolist()
    texts = ["0.1", "1e-5", "123456789.123456789123", "-0.0", "5e-324", "7"]
    data = materials(1)
    data["mp-0"]["mp-0-0-0"]["force"] = force
    data["mp-0"]["mp-0-0-1"]["force"] = "FORCE"
    text = json.dumps(data).replace('"FORCE"', f"[[{', '.join(texts[:3])}], [{', '.join(texts[3:])}]]")
    items = [item for _, item in read_structures(read(tmp_path, text))]
    assert items[0].forces.tolist() == force
    assert items[1].forces.ravel().tolist() == [float(number) for number in texts]


KILLED = """
import sys
from pathlib import Path
from forceuq.data.sources import mptrj
mptrj._PIECE = 20_000
if __name__ == "__main__":
    mptrj.convert(Path(sys.argv[1]), Path(sys.argv[2]), mptrj.Options(), threads=2)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_run_leaves_nothing_behind_for_the_next(tmp_path):
    whole = read(tmp_path / "whole", materials(500))
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(KILLED)
    command = [sys.executable, script, tmp_path / "whole/raw", out / "s.parquet"]
    job = psutil.Popen(command, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    deadline = time.monotonic() + 60
    # Something is written, and its processes are at work.
    while not any(path.stat().st_size > 10_000 for path in out.glob(".s.*")):
        assert job.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    workers = job.children(recursive=True)
    assert workers
    job.kill()
    job.wait()
    assert not psutil.wait_procs(workers, timeout=20)[1]
    assert [path.name.startswith(".s.") for path in out.iterdir()] == [True]
    convert(tmp_path / "whole/raw", out / "s.parquet", Options())
    assert (out / "s.parquet").read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in out.iterdir()) == ["s.parquet", "s.parquet.report.json"]


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(st.floats(-1e3, 1e3), min_size=6, max_size=6),
    energy=st.floats(-1e3, 1e3) | st.integers(-1000, 1000),
)
def test_the_quick_reader_gives_what_the_careful_one_gives(numbers, energy):
    data = record("mp-1", 0.02)
    data.update(force=[numbers[:3], numbers[3:]], corrected_total_energy=energy, energy_per_atom=numbers[0])
    data["structure"]["sites"][0]["xyz"] = numbers[2:5]
    assume(fault(_structure("mp-1", "a", data)) is None)  # such as both atoms at one position
    text = json.dumps({"mp-1": {"a": data, "b": record("mp-1", 0.1)}})[1:-1].encode()
    assert len(_as_published(text).atoms) == 2
    quick, careful = StructureBlock(), StructureBlock()
    read_materials(quick, text, single=True)
    read_materials(careful, text, single=False)
    assert quick.table().equals(careful.table())
    assert quick.rejected == careful.rejected == []


@pytest.mark.parametrize("text", [b'"m": {"f": {"x": "\xff"}}', b'"m": {"f": 01}', b'"m": {}, "n": {', b","])
def test_what_is_not_json_is_refused_by_both_readers(text):
    with pytest.raises(ValueError, match=r".+"):
        read_materials(StructureBlock(), text, single=True)


def test_names_in_other_scripts_and_floats_for_integers(tmp_path):
    data = materials(2)
    plain = read(tmp_path / "a", data)
    data["mp-0"]["mp-0-0-0"]["structure"]["sites"][0]["label"] = "Naé"
    data["mp-1"]["mp-1-0-0"]["structure"]["sites"][0]["species"][0]["occu"] = 1.0
    assert read(tmp_path / "b", json.dumps(data, ensure_ascii=False)).read_bytes() == plain.read_bytes()
