"""Archives that are damaged or of an unusual make: every file is read, or there is an error."""

import gzip
import io
import tarfile

import pytest

from forceuq.data.archives import members, whole_archive
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


def read(folder, content: bytes, suffixes=(".xyz",)) -> list[str]:
    """Return the names of the members, which are all read."""
    (folder / "raw").write_bytes(content)
    with whole_archive(folder / "raw"):
        return [member.name for member in members(folder / "raw", suffixes) if member.stream.read()]


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
