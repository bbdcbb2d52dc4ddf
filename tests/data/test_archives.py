"""Archives that are damaged or of an unusual make: every file is read, or there is an error."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import pytest

from forceuq.data.archives import members, say_passed_over, whole_archive
from forceuq.errors import DataError

NAMES = [f"f{i}.xyz" for i in range(5)]
MEMBER = 512 + 1024  # its header, and its content with what fills the last block
PACKING = pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])


def tar(names=NAMES, size=700) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = size
            archive.addfile(entry, io.BytesIO(name.encode() * size))
    return buffer.getvalue()


def zipped(names) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return buffer.getvalue()


def read(folder, content: bytes, passed_over=None) -> list[str]:
    """Return the names of the members, which are all read."""
    (folder / "raw").write_bytes(content)
    with whole_archive(folder / "raw"):
        return [member.name for member in members(folder / "raw", (".xyz",), passed_over) if member.stream.read()]


@PACKING
def test_a_whole_tar_is_read_whatever_zeros_end_it(tmp_path, pack):
    whole = tar()
    # One block of zeros, as some programs write, as well as the two of the format and tar's own record of 20.
    for end in (512, 1024, 10240, 3 * 2**20):
        assert read(tmp_path, pack(whole[: 5 * MEMBER] + bytes(end))) == NAMES


def flipped(whole: bytes) -> bytes:
    at = 2 * MEMBER + 1
    return whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]


@PACKING
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flipped, f"damaged header at byte {2 * MEMBER}: bad checksum"),
        (lambda whole: whole[: 2 * MEMBER], f"ends at byte {2 * MEMBER} without an end mark"),
        (lambda whole: whole[: 2 * MEMBER + 100], f"damaged header at byte {2 * MEMBER}: truncated"),
        (lambda whole: whole[: 2 * MEMBER - 600], "unexpected end of data"),
        (lambda whole: whole + whole, "more follows the tar archive's end, at byte 10240"),
        (lambda whole: whole[: 5 * MEMBER] + bytes(1024) + whole, f"end, at byte {5 * MEMBER + 1024}"),
        (lambda whole: whole + bytes(2**21) + b"x", f"end, at byte {10240 + 2**21}"),
    ],
)
def test_a_tar_that_is_damaged_cut_off_or_goes_on_is_refused(tmp_path, pack, damage, message):
    with pytest.raises(DataError, match=f"raw: .*{message}"):
        read(tmp_path, pack(damage(tar())))


def test_damage_behind_a_long_name_is_refused(tmp_path):
    """A long name has a header of its own before the member's."""
    whole = bytearray(tar(["a.xyz", "b" * 200 + ".xyz", "c.xyz"]))
    assert len(read(tmp_path, bytes(whole))) == 3
    at = MEMBER + 2 * 512
    whole[at + 1] ^= 1
    with pytest.raises(DataError, match=f"damaged header at byte {at}"):
        read(tmp_path, bytes(whole))


@pytest.mark.parametrize("pack", [tar, zipped])
def test_suffixes_in_upper_case_are_read_and_what_is_passed_over_is_named(tmp_path, pack):
    passed: list[str] = []
    names = ["a.xyz", "b.XYZ", "d.EXTXYZ", "e", "._a.xyz", "._f", "x.gz", "deep/a.b.Xyz"]
    assert read(tmp_path, pack(names), passed) == ["a.xyz", "b.XYZ", "deep/a.b.Xyz"]
    assert passed == ["d.EXTXYZ", "e", "x.gz"]


@pytest.mark.parametrize("pack", [tar, zipped])
@pytest.mark.parametrize("name", ["c.xyz.gz", "c.XYZ.BZ2", "deep/c.xyz.zst"])
def test_a_compressed_file_in_an_archive_is_to_be_unpacked(tmp_path, pack, name):
    with pytest.raises(DataError, match=f"record {name}: a compressed file in the archive; unpack it"):
        read(tmp_path, pack(["a.xyz", name]))


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("lines", [3, 3000])
def test_a_compressed_file_alone_is_to_be_unpacked(tmp_path, compress, lines):
    with pytest.raises(DataError, match="a single compressed file has to be unpacked"):
        read(tmp_path, compress(b"1\n\nCu 0 0 0 0 0 0\n" * lines))


def test_the_first_of_many_that_are_passed_over_are_named():
    said: list[str] = []
    say_passed_over([], said.append)
    say_passed_over([f"caf\udce9{i}" for i in range(7)], said.append)
    first = ", ".join(rf"caf\udce9{i}" for i in range(5))
    assert said == [f"7 files in the archive were passed over for their suffix: {first}, ..."]


def test_zip_archives_one_after_another_are_refused(tmp_path):
    """A zip is read from its end: what stands before it would be lost."""
    whole = zipped(NAMES)
    assert read(tmp_path, whole) == NAMES
    with pytest.raises(DataError, match=f"{len(whole)} bytes stand before the zip archive"):
        read(tmp_path, whole + zipped(["other.xyz"]))


@pytest.mark.parametrize("folder", ["ethanol.xyz", "ethanol.xyz.gz"])
def test_a_folder_in_a_tar_may_have_any_name(tmp_path, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "a.xyz").write_text("1")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(tmp_path / folder, folder)
    passed_over: list[str] = []
    assert read(tmp_path, buffer.getvalue(), passed_over) == [f"{folder}/a.xyz"]
    assert passed_over == []
