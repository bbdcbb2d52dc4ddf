"""Members of tar and zip archives, one after another, without unpacking the archive.

Member names are taken as data: an unsafe path, a link or a device is refused, and what is not a whole archive is an
error that says so.
"""

import bz2
import gzip
import lzma
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tarfile import EmptyHeaderError, EOFHeaderError, HeaderError, ReadError  # type: ignore[attr-defined]
from typing import IO, Self, cast

from forceuq.errors import DataError

_COMPRESSED: dict[bytes, Callable[[Path], object]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
# Of compressed single files.
_SINGLE = (".gz", ".bz2", ".xz", ".lzma", ".zst", ".z", ".zip")
_NAMED = 5


@dataclass(frozen=True)
class Member:
    """A file in an archive, to be read before the next one is asked for.

    Args:
        name: its path in the archive.
        size: bytes, unpacked.
        stream: its content, to be read once from begin to end.
    """

    name: str
    size: int
    stream: IO[bytes]

    @property
    def path(self) -> PurePosixPath:
        """The path in the archive, for its name and suffix."""
        return PurePosixPath(self.name)

    @property
    def suffix(self) -> str:
        """The name's suffix in lower case."""
        return self.path.suffix.lower()


def is_archive(raw: Path) -> bool:
    """Return whether a file is a zip or tar archive, or compressed, as only a tar archive is expected to be."""
    return zipfile.is_zipfile(raw) or _opener(raw) is not None or tarfile.is_tarfile(raw)


@contextmanager
def whole_archive(raw: Path) -> Iterator[None]:
    """Turn the errors of reading a damaged archive, in its table of contents or in a member, into one that says so.

    Raises:
        DataError: no such file, or not a whole archive.
    """
    try:
        yield
    except FileNotFoundError as error:
        if error.filename is not None and Path(error.filename) != raw:
            raise
        raise DataError("there is no such file", file=raw) from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, NotImplementedError) as error:
        raise DataError(f"not a whole tar or zip archive ({error}); fetch it again", file=raw) from error
    except OSError as error:
        if error.errno is not None:  # of the disk, not of the data
            raise
        raise DataError(f"not a whole tar or zip archive ({error}); fetch it again", file=raw) from error


def members(raw: Path, suffixes: Sequence[str], passed_over: list[str] | None = None) -> Iterator[Member]:
    """Yield the files with one of some suffixes of a tar (any compression) or zip archive, in the archive's order.

    To be used inside ``whole_archive``. Memory: the stream's buffers; a tar is read once from begin to end.

    Args:
        raw: the archive.
        suffixes: in lower case; a member's may be in upper case too.
        passed_over: gets the names of the files with other suffixes, but for those that macOS adds.

    Raises:
        DataError: an unsafe path, a link or device with such a suffix, a compressed file that would have one, or more
            after the end of a tar archive.
    """
    if zipfile.is_zipfile(raw):
        with zipfile.ZipFile(raw) as archive:
            at = min((info.header_offset for info in archive.infolist()), default=0)
            if at:
                raise DataError(
                    f"{at} bytes stand before the zip archive: several archives one after another; pack all files into"
                    " one archive",
                    file=raw,
                )
            for info in archive.infolist():
                if not info.is_dir() and _wanted(info.filename, suffixes, raw, passed_over):
                    with archive.open(info) as stream:
                        yield Member(info.filename, info.file_size, stream)
        return
    with _decompressed(raw) as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_Entry) as tar:
        for entry in tar:
            if entry.isdir() or not _wanted(entry.name, suffixes, raw, passed_over):
                continue
            content = tar.extractfile(entry) if entry.isfile() else None
            if content is None:
                raise DataError(
                    "a link or device, not a file; fetch it from its publisher", file=raw, record=entry.name
                )
            yield Member(entry.name, entry.size, content)
        _read_to_the_end(tar, raw)


def say_passed_over(names: Sequence[str], warn: Callable[[str], None]) -> None:
    """Say how many files of an archive were not read, and which the first are; nothing where there are none."""
    if names:
        first = ", ".join(name.encode(errors="backslashreplace").decode() for name in names[:_NAMED])
        more = ", ..." if len(names) > _NAMED else ""
        warn(f"{len(names)} files in the archive were passed over for their suffix: {first}{more}")


def pack_folder(folder: Path, target: Path) -> None:
    """Write the files of a folder into a tar archive; the same files give the same bytes.

    Raises:
        DataError: there is no file in the folder.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if not paths:
        raise DataError("there is no file in this folder", file=folder)
    with tarfile.open(target, "w", dereference=True) as tar:
        for path in paths:
            entry = tarfile.TarInfo(path.relative_to(folder).as_posix())  # no owner, time 0
            entry.size = path.stat().st_size
            with path.open("rb") as handle:
                tar.addfile(entry, handle)


def unpack(member: Member, target: Path, raw: Path) -> None:
    """Write a member's content to a file.

    Raises:
        DataError: the content ends before the member's size.
    """
    with target.open("wb") as handle:
        shutil.copyfileobj(member.stream, handle, 2**20)
    if target.stat().st_size != member.size:
        raise DataError("the archive is truncated; fetch it again", file=raw, record=member.name)


@contextmanager
def unpacked(member: Member, raw: Path, beside: Path) -> Iterator[Path]:
    """Yield a temporary file with a member's content, in the folder of ``beside``; for formats that need a file."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=beside.parent) as folder:
        target = Path(folder, member.path.name)
        unpack(member, target, raw)
        yield target


class _Entry(tarfile.TarInfo):
    """A header in a tar archive; tarfile itself takes one that is damaged, cut off or missing as the archive's end."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        at = _stream(tarfile).tell()
        try:
            return super().fromtarfile(tarfile)
        except EOFHeaderError:  # the end mark
            raise
        except EmptyHeaderError:
            raise ReadError(f"it ends at byte {at} without an end mark") from None
        except HeaderError as error:
            if at == 0:
                raise ReadError(
                    f"no tar header at its begin; a single compressed file has to be unpacked: {error}"
                ) from error
            raise ReadError(f"damaged header at byte {at}: {error}") from error


def _read_to_the_end(tar: tarfile.TarFile, raw: Path) -> None:
    """Read on after the end mark, to the checksum of the compression; only zeros may come."""
    stream = _stream(tar)
    while block := stream.read(2**20):
        if block.strip(b"\0"):
            at = stream.tell() - len(block.lstrip(b"\0"))
            raise DataError(
                f"more follows the tar archive's end, at byte {at}: damaged, or several archives one after another; "
                "fetch it again, or pack all files into one archive",
                file=raw,
            )


def _stream(tar: tarfile.TarFile) -> IO[bytes]:
    return cast("IO[bytes]", tar.fileobj)


def _opener(raw: Path) -> Callable[[Path], object] | None:
    with raw.open("rb") as handle:
        start = handle.read(8)
    return next((opener for magic, opener in _COMPRESSED.items() if start.startswith(magic)), None)


def _decompressed(raw: Path) -> IO[bytes]:
    """Open a file, decompressed if it is compressed."""
    # tarfile would decompress as well, but check no checksum.
    opener = _opener(raw)
    return raw.open("rb") if opener is None else cast("IO[bytes]", opener(raw))


def _wanted(name: str, suffixes: Sequence[str], raw: Path, passed_over: list[str] | None) -> bool:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError("unsafe path in the archive; fetch it from its publisher", file=raw, record=name)
    if path.name.startswith("._"):  # what macOS adds
        return False
    endings = [suffix.lower() for suffix in path.suffixes[-2:]]
    if endings[-1:] and endings[-1] in suffixes:
        return True
    if len(endings) == 2 and endings[0] in suffixes and endings[1] in _SINGLE:
        raise DataError("a compressed file in the archive; unpack it, and pack again", file=raw, record=name)
    if passed_over is not None:
        passed_over.append(name)
    return False
