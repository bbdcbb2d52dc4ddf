import json
import re
import zipfile

import pytest
from frames import assert_read, frame, no_traces, xyz

from forceuq.data.sources.tm23 import SPLITS, TEMPERATURES, Options, convert, parts, split, tasks
from forceuq.data.splits import read_part
from forceuq.data.structures import read_structures, report_path
from forceuq.errors import DataError

FOLDER = "benchmarking_master_collection"
COUNT = {"train": 3, "test": 2}


def collection(metals=("Cu", "W")):
    """Return member -> frames in the published layout, with the unions that repeat every frame."""
    files = {}
    for metal in metals:
        for part in SPLITS:
            union = []
            for temperature in TEMPERATURES:
                seed = 100 * TEMPERATURES.index(temperature) + 10 * SPLITS.index(part)
                frames = [frame(f"{metal}3", seed + i) for i in range(COUNT[part])]
                files[f"{metal}_{temperature}_nequip_{part}.xyz"] = frames
                union += frames
            files[f"{metal}_2700cwm_{part}.xyz"] = union
    return files


def pack(path, texts, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(f"{FOLDER}/", "")
        for name, text in texts.items():
            archive.writestr(f"{FOLDER}/{name}", text)


def texts():
    """Return the collection's files as text."""
    return {name: xyz(frames) for name, frames in collection().items()}


def read(folder, files, options=Options()):  # noqa: B008 - frozen
    pack(folder / "raw", files)
    convert(folder / "raw", folder / "s.parquet", options)
    return [item for _, item in read_structures(folder / "s.parquet")]


def test_both_splits_are_read_and_no_frame_twice(tmp_path):
    items = {item.structure_id: item for item in read(tmp_path, texts())}
    # Two metals at three temperatures; the unions would double it.
    assert len(items) == 2 * 3 * (3 + 2)
    for name, frames in collection().items():
        if "2700cwm" in name:
            continue
        metal, temperature, _, part = name.removesuffix(".xyz").split("_")
        for index, atoms in enumerate(frames):
            item = items.pop(f"tm23-{metal}-{temperature}-{part}-{index:06d}")
            assert_read(item, atoms)
            assert item.group_id == metal
    assert not items
    split(tmp_path / "s.parquet", tmp_path / "splits", Options())
    assert read_part(tmp_path / "splits", "all").tolist() == list(range(30))


def test_it_is_evaluated_on_only():
    assert tasks("tm23", Options()) == ()
    assert parts(Options()) == ("all",)


NAME = "Cu_warm_nequip_test.xyz"


def bad_frame(change):
    files = texts()
    files[NAME] = change(files[NAME])
    return files


def swap(old, new):
    return lambda text: text.replace(old, new, 1)


def without_a_column(text):
    """Cut the last force off the first atom's line."""
    lines = text.splitlines()
    lines[2] = lines[2].rsplit(maxsplit=1)[0]
    return "\n".join([*lines, ""])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_a_column, "length 6"),
        (swap("forces:R:3", "frc:R:3"), "no 'forces' of the atoms; there are: energy, frc"),
        (swap("\nCu ", "\nZz "), "unknown element or column 'Zz'"),
        (swap("\nCu ", "\nX "), "unknown element"),
        (swap("4.0 0.0 0.0", "0.0 0.0 0.0"), "cell of no volume"),
        (swap('pbc="T T T"', 'pbc="T T F"'), "some directions"),
        (swap("energy=", "energy=nan free_energy="), "energy not finite"),
        (swap("\nCu       ", "\nCu       one"), "one"),
        (lambda text: text.encode().replace(b"\nCu", b"\n\xff\xfe", 1), "codec can't decode"),
    ],
)
def test_a_damaged_frame_is_left_out_with_id_and_reason(tmp_path, change, reason):
    items = read(tmp_path, bad_frame(change), Options(max_bad_fraction=0.05))
    report = json.loads(report_path(tmp_path / "s.parquet").read_text())
    assert len(items) == report["written"] == 29
    assert [entry["id"] for entry in report["rejected"]] == ["tm23-Cu-warm-test-000000"]
    assert re.search(reason, report["rejected"][0]["reason"]), report


def test_too_many_damaged_frames_are_an_error(tmp_path):
    with pytest.raises(DataError, match=r"1 of 30 structures .* no 'forces'"):
        read(tmp_path, bad_frame(swap("forces:R:3", "frc:R:3")))
    assert not (tmp_path / "s.parquet").exists()


def test_labels_under_other_names(tmp_path):
    files = {name: text.replace("forces:R:3", "f:R:3").replace("energy=", "E=") for name, text in texts().items()}
    items = read(tmp_path, files, Options(forces_key="f", energy_key="E"))
    assert_read(items[0], next(iter(collection().values()))[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap("\n", "\n\n"), r"Cu_warm_nequip_test\.xyz.*frame 1 should begin"),
        (lambda text: text[: 3 * len(text) // 4], r"Cu_warm_nequip_test\.xyz.*ends inside frame 1"),
        (lambda text: text + "3\n", r"Cu_warm_nequip_test\.xyz.*ends inside frame 2"),
        (lambda text: text.encode() + b"\xff\xfe", r"Cu_warm_nequip_test\.xyz.*frame 2 should begin"),
        (lambda text: "no number\n" + text, r"Cu_warm_nequip_test\.xyz.*'no number'"),
    ],
)
def test_a_file_without_frame_ends_is_an_error(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, bad_frame(change), Options(max_bad_fraction=1))
    assert not (tmp_path / "s.parquet").exists()
    assert no_traces(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no <El>"),
        ({k: v for k, v in texts().items() if "2700cwm" in k}, "no <El>"),
        ({k: v for k, v in texts().items() if k != NAME}, r"not in the archive: Cu_warm_nequip_test\.xyz"),
        (texts() | {"Cu_hot_nequip_test.xyz": "1\n"}, r"Cu_hot_nequip_test\.xyz: neither"),
        (texts() | {f"copy/{NAME}": texts()[NAME]}, "this file twice"),
        (texts() | {"../evil.xyz": "1\n"}, "unsafe path"),
    ],
    ids=["empty", "unions only", "missing", "unknown", "twice", "unsafe"],
)
def test_an_archive_of_another_content_is_an_error(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, files)
    assert not (tmp_path / "s.parquet").exists()


def test_a_truncated_or_damaged_archive_is_an_error(tmp_path):
    pack(tmp_path / "whole", texts())
    content = (tmp_path / "whole").read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 3] ^= 0xFF
    for damaged in (content[: len(content) // 2], content[:-30], bytes(flipped), b"", b"PK\x03\x04"):
        (tmp_path / "raw").write_bytes(damaged)
        with pytest.raises(DataError, match="raw"):
            convert(tmp_path / "raw", tmp_path / "s.parquet", Options(max_bad_fraction=1))
        assert not (tmp_path / "s.parquet").exists()
    with pytest.raises(DataError, match="no such file"):
        convert(tmp_path / "nowhere", tmp_path / "s.parquet", Options())


def test_another_data_sets_structures_are_refused(tmp_path):
    from forceuq.data.structures import StructureWriter, structure

    with StructureWriter(tmp_path / "s.parquet", metadata={"source": "rmd17"}) as writer:
        writer.add(structure("a", "a", numbers=[1], positions=[[0, 0, 0]], forces=[[0, 0, 0]]))
    with pytest.raises(DataError, match="holds 'rmd17', not 'tm23'"):
        split(tmp_path / "s.parquet", tmp_path / "splits", Options())
