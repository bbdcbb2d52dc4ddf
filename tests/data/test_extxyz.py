import bz2
import io
import json
import tarfile
import zipfile

import pytest
from ase.io import Trajectory
from frames import assert_read, frame, no_traces, xyz
from pydantic import ValidationError

from forceuq.data.download import Source, download
from forceuq.data.sources.extxyz import Options, convert, parts, split, tasks
from forceuq.data.splits import PartRef, part_counts, read_part
from forceuq.data.structures import read_columns, read_structures, report_path
from forceuq.errors import DataError, DownloadError

FRAMES = [frame("CuAu", seed=i) for i in range(5)]


def trajectory(path, frames):
    with Trajectory(path, "w") as handle:
        for atoms in frames:
            handle.write(atoms)
    return path.read_bytes()


def read(folder, content, options=Options()):  # noqa: B008 - frozen
    (folder / "raw").write_bytes(content)
    convert(folder / "raw", folder / "s.parquet", options)
    return [item for _, item in read_structures(folder / "s.parquet")]


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["xyz", "traj"])
def test_a_single_file_is_read(tmp_path, kind):
    content = xyz(FRAMES).encode() if kind == "xyz" else trajectory(tmp_path / "t.traj", FRAMES)
    items = read(tmp_path, content)
    assert [item.structure_id for item in items] == [f"frame-{i:06d}" for i in range(5)]
    for item, atoms in zip(items, FRAMES, strict=True):
        assert_read(item, atoms)


def test_a_folder_is_packed_and_read(tmp_path):
    folder = tmp_path / "mine"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.extxyz").write_text(xyz(FRAMES[:2]))
    (folder / "notes.txt").write_text("not frames")
    trajectory(folder / "deep/b.traj", FRAMES[2:4])
    (folder / "molecule.xyz").write_text(xyz([frame("CO", pbc=False)]))
    source = Source(urls=(f"file:{folder}",), filename="mine")
    download(source, tmp_path / "raw", tmp_path / "lock.json")
    convert(tmp_path / "raw", tmp_path / "s.parquet", Options())
    items = [item for _, item in read_structures(tmp_path / "s.parquet")]
    expected = {
        "a-000000": FRAMES[0],
        "a-000001": FRAMES[1],
        "deep/b-000000": FRAMES[2],
        "deep/b-000001": FRAMES[3],
        "molecule-000000": frame("CO", pbc=False),
    }
    assert [item.structure_id for item in items] == list(expected)
    assert [item.group_id for item in items] == ["a", "a", "deep/b", "deep/b", "molecule"]
    for item, atoms in zip(items, expected.values(), strict=True):
        assert_read(item, atoms)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    first = (tmp_path / "raw").read_bytes()
    (folder / "a.extxyz").touch()
    download(source, tmp_path / "again", tmp_path / "lock.json")
    assert (tmp_path / "again").read_bytes() == first
    (folder / "a.extxyz").write_text(xyz(FRAMES[:1]))
    with pytest.raises(DownloadError, match="now has SHA-256"):
        download(source, tmp_path / "other", tmp_path / "lock.json")


def test_an_empty_folder_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DownloadError, match="no file in this folder"):
        download(Source(urls=(f"file:{tmp_path}/empty",), filename="x"), tmp_path / "raw", tmp_path / "lock.json")


def test_the_re_export_of_mptrj(tmp_path):
    """Flat members, one a material, with the keys that the re-export writes."""
    files = {}
    for material in ("mp-1", "mp-2", "mp-3"):
        frames = []
        for step in range(3):
            info = {
                "material_id": material,
                "formula": "CuAu",
                "task_id": "mp-9",
                "calc_id": 0,
                "ionic_step": step,
                "frame_id": f"{material}-0-{step}",
                "mp2020_corrected_energy": -3.5 - step,
            }
            frames.append(frame("CuAu", seed=step, info=info, magmoms=[0.5, 0.25]))
        files[f"{material}.extxyz"] = xyz(frames)
    options = Options(
        group_by="material_id", id_key="frame_id", energy_key="mp2020_corrected_energy", fractions=(0.34, 0.33, 0.33)
    )
    items = read(tmp_path, zipped(files), options)
    assert [item.structure_id for item in items[:4]] == ["mp-1-0-0", "mp-1-0-1", "mp-1-0-2", "mp-2-0-0"]
    assert [item.group_id for item in items[::3]] == ["mp-1", "mp-2", "mp-3"]
    assert [item.energy for item in items[:3]] == [-3.5, -4.5, -5.5]
    split(tmp_path / "s.parquet", tmp_path / "splits", options)
    assert part_counts(tmp_path / "splits") == {"train": 3, "val": 3, "test": 3}


def test_the_cut_keeps_groups_whole_and_depends_on_their_set(tmp_path):
    found = []
    for order in (1, -1):
        files = {f"{i:02d}.xyz": xyz([frame("Cu", seed=i)] * 2) for i in range(20)[::order]}
        read(tmp_path, zipped(files))
        split(tmp_path / "s.parquet", tmp_path / "splits", Options())
        ids = read_columns(tmp_path / "s.parquet", ["structure_id"]).column(0).to_pylist()
        found.append({ids[row]: part for part in parts(Options()) for row in read_part(tmp_path / "splits", part)})
    assert found[0] == found[1]
    assert all(found[0][f"{i:02d}-000000"] == found[0][f"{i:02d}-000001"] for i in range(20))
    assert part_counts(tmp_path / "splits") == {"train": 32, "val": 4, "test": 4}
    split(tmp_path / "s.parquet", tmp_path / "splits", Options(seed=1))
    assert part_counts(tmp_path / "splits") == {"train": 32, "val": 4, "test": 4}
    other = read_part(tmp_path / "splits", "test").tolist()
    assert {ids[row] for row in other} != {name for name, part in found[0].items() if part == "test"}


def test_too_few_groups_say_what_to_do(tmp_path):
    read(tmp_path, xyz(FRAMES).encode())
    with pytest.raises(DataError, match=r"1 groups are too few .* group_by"):
        split(tmp_path / "s.parquet", tmp_path / "splits", Options())
    frames = Options(group_by="frame", fractions=(0.6, 0.2, 0.2))
    read(tmp_path, xyz(FRAMES).encode(), frames)
    split(tmp_path / "s.parquet", tmp_path / "splits", frames)
    assert part_counts(tmp_path / "splits") == {"train": 3, "val": 1, "test": 1}


def test_tasks_follow_from_the_options(tmp_path):
    (task,) = tasks("mine", Options())
    assert (task.name, task.train, task.validation, task.evaluate) == (
        "mine",
        (PartRef("mine", "train"),),
        (PartRef("mine", "val"),),
        {"id": (PartRef("mine", "test"),)},
    )
    only = Options(fractions=None)
    assert (tasks("mine", only), parts(only)) == ((), ("all",))
    read(tmp_path, xyz(FRAMES).encode(), only)
    split(tmp_path / "s.parquet", tmp_path / "splits", only)
    assert part_counts(tmp_path / "splits") == {"all": 5}


@pytest.mark.parametrize(
    ("bad", "options", "reason"),
    [
        (frame("CuAu", forces=None), {}, "no 'forces' of the atoms; there are: energy"),
        (frame("CuAu"), {"group_by": "material_id"}, "no 'material_id' of the frame; there are: "),
        (frame("CuAu", info={"name": "x"}), {"id_key": "frame_id"}, "no 'frame_id' of the frame; there are: name"),
        (frame("CuAu", forces=[[0, 0, float("inf")]] * 2), {}, "forces not finite"),
    ],
)
@pytest.mark.parametrize("kind", ["xyz", "traj"])
def test_a_damaged_frame_is_left_out_with_id_and_reason(tmp_path, kind, bad, options, reason):
    good = [frame("CuAu", seed=i, info={"material_id": "m", "frame_id": f"f{i}"}) for i in range(2)]
    content = trajectory(tmp_path / "t.traj", [bad, *good]) if kind == "traj" else xyz([bad, *good]).encode()
    items = read(tmp_path, content, Options(max_bad_fraction=0.5, **options))
    assert len(items) == 2
    (rejected,) = json.loads(report_path(tmp_path / "s.parquet").read_text())["rejected"]
    assert rejected["id"] == "frame-000000"
    assert reason in rejected["reason"]


def test_damaged_files_are_errors(tmp_path):
    whole = trajectory(tmp_path / "t.traj", FRAMES)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:bz2") as archive:
        member = tarfile.TarInfo("a.traj")
        member.size = len(whole)
        archive.addfile(member, io.BytesIO(whole))
    cut = zipped({"b.traj": whole[: len(whole) // 4]})
    for content, message in (
        (b"", "no usable structure"),
        (zipped({"a.txt": "x"}), r"no file that ends in \.xyz"),
        (whole[:30], "not a whole ASE trajectory"),
        (cut, r"b\.traj: not a whole ASE trajectory"),
        (tar.getvalue()[:-40], "not a whole tar or zip archive"),
        (xyz(FRAMES).encode()[:-150], "ends inside frame 4"),
        (b"%PDF-1.7\n" + bz2.compress(b"x"), "'%PDF-1.7'"),
    ):
        with pytest.raises(DataError, match=message):
            read(tmp_path, content, Options(max_bad_fraction=1))
        assert not (tmp_path / "s.parquet").exists()
        assert no_traces(tmp_path)


def test_what_is_passed_over_is_in_the_log_and_the_report(tmp_path, caplog):
    whole = trajectory(tmp_path / "t.traj", FRAMES[:2])
    items = read(tmp_path, zipped({"a.XYZ": xyz(FRAMES[2:]), "b.TRAJ": whole, "c.cif": "x", "d.xyz_old": "y"}))
    assert [item.structure_id for item in items] == [*(f"a-00000{i}" for i in range(3)), "b-000000", "b-000001"]
    said = "2 files in the archive were passed over for their suffix: c.cif, d.xyz_old"
    assert json.loads(report_path(tmp_path / "s.parquet").read_text())["warnings"] == [said]
    assert [record.getMessage() for record in caplog.records] == [f"{tmp_path / 's.parquet'}: {said}"]


def test_a_last_line_without_an_end_is_warned_of(tmp_path):
    """A cut inside the last number gives a frame that looks whole."""
    text = xyz(FRAMES).rstrip()
    assert len(read(tmp_path, text[:-3].encode())) == 5
    (said,) = json.loads(report_path(tmp_path / "s.parquet").read_text())["warnings"]
    assert said == "the last line has no end: the file may be cut off, and the last number of frame 4 wrong"
    read(tmp_path, zipped({"a.xyz": text, "b.xyz": text + "\n"}))
    (said,) = json.loads(report_path(tmp_path / "s.parquet").read_text())["warnings"]
    assert said.startswith("the last line of a.xyz has no end")


def test_options_are_checked():
    with pytest.raises(ValidationError, match="sum to 1"):
        Options(fractions=(0.8, 0.1, 0.2))
