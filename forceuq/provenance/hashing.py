"""Many files hashed at once, on all cores."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from forceuq.files import file_digest


def digests(files: Iterable[Path], workers: int | None = None) -> dict[Path, str | OSError]:
    """Return the SHA-256 of each file, or why it cannot be read.

    Threads do, since hashing and reading let go of the interpreter's lock.

    Args:
        files: which.
        workers: threads; None: one a core that this process may use.
    """
    paths = list(dict.fromkeys(files))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(workers or cores) as pool:
        return dict(zip(paths, pool.map(_digest, paths), strict=True))


def _digest(path: Path) -> str | OSError:
    try:
        return file_digest(path)
    except OSError as error:
        return error
    except ValueError as error:  # a name that no file can have, from a damaged record
        return OSError(str(error))
