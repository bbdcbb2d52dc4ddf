"""Digests of files, of directories and of plain values."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forceuq.files import file_digest

# Files that a workflow engine leaves in the directories that jobs made, after the jobs ended; none has content.
MARKERS = frozenset({".snakemake_timestamp"})


@dataclass(frozen=True)
class Stat:
    """What tells that a file was not written since it was hashed: size (bytes), mtime (ns), inode, and ctime (ns).

    The last is the file system's own and cannot be set back. Notes of earlier versions are without it: such files are
    hashed again.
    """

    size: int
    mtime_ns: int
    inode: int
    ctime_ns: int | None = None

    @classmethod
    def of(cls, path: Path) -> "Stat":
        """Return a file's."""
        state = path.stat()
        return cls(state.st_size, state.st_mtime_ns, state.st_ino, state.st_ctime_ns)


def canonical(value: Any) -> bytes:
    """Return the JSON of a plain value that its digest is taken over: sorted keys, no spaces, UTF-8.

    Raises:
        ValueError: NaN or infinity, which JSON does not have.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest_of(value: Any) -> str:
    """Return the SHA-256 (hex) of a plain value's canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


def bytes_digest(content: bytes) -> str:
    """Return the SHA-256 (hex) of some bytes."""
    return hashlib.sha256(content).hexdigest()


def files_of(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name inside it, file) of a directory's files in order; of a file, itself under the name ""."""
    if not path.is_dir():
        yield "", path
        return
    found = [file for file in path.rglob("*") if not file.is_dir() and file.name not in MARKERS]
    yield from sorted((file.relative_to(path).as_posix(), file) for file in found)


def tree_digest(files: dict[str, tuple[str, int]]) -> str:
    """Return the digest of a directory from its files' name -> (SHA-256, size): of "digest size name" lines."""
    lines = "".join(f"{digest} {size} {name}\n" for name, (digest, size) in sorted(files.items()))
    return bytes_digest(lines.encode())


def hashed(path: Path) -> tuple[str, Stat]:
    """Return a file's SHA-256 and what it looked like before it was read."""
    state = Stat.of(path)
    return file_digest(path), state
