"""Whole files only: write under a temporary name, then rename; and digests of what was written."""

import contextlib
import glob
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced and renamed to ``path``.

    On any exception the temporary file is removed and ``path`` is left as it was, so a file that exists
    under its final name is always whole.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(_temporary(final, f"{os.getpid()}-{uuid.uuid4().hex[:8]}"))
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(path: str | Path) -> None:
    """Remove what killed writers of ``path`` left of it. Nobody else may be writing it."""
    final = Path(path)
    for stale in final.parent.glob(_temporary(Path(glob.escape(final.name)), "*")):
        stale.unlink(missing_ok=True)


def _temporary(final: Path, middle: str) -> str:
    # The suffix is kept last: some writers choose their format by it.
    return f".{final.stem}.{middle}.part{final.suffix}"


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON with sorted keys. NaN and infinities are refused (ValueError)."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def file_digest(path: str | Path, algorithm: str = "sha256") -> str:
    """Return the hexadecimal digest of a file, read in blocks."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, algorithm).hexdigest()
