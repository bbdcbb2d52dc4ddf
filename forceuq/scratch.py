"""A node's own fast folder: feature caches that training reads anew every epoch are copied there once."""

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

_LOGGER = logging.getLogger(__name__)
# The site's folder, set for the jobs of a cluster; it may name variables that only a job has, such as $SLURM_JOB_ID.
VARIABLE = "FORCEUQ_SCRATCH"

# What training holds in memory (forceuq.bll.batches.MEMORY_BYTES): smaller caches are read once.
HELD_BYTES = 3 * 2**28


@contextlib.contextmanager
def near(folders: Sequence[Path], read_again: bool) -> Iterator[tuple[Path, ...]]:
    """Yield copies of folders on the node's own disk, which are removed afterwards, or the folders themselves.

    They are copied where the site has such a disk, when they are too large to be held in memory, and when twice their
    size is free there. A copy that fails, on a disk that other jobs fill, leaves the folders as they are: only speed
    depends on it, and the log says which it was.

    Args:
        folders: with files only, no folders inside.
        read_again: whether they are read many times.
    """
    there = os.path.expandvars(os.environ.get(VARIABLE, ""))
    if not there or not read_again:
        yield tuple(folders)
        return
    size = sum(file.stat().st_size for folder in folders for file in folder.iterdir())
    if size < HELD_BYTES:
        yield tuple(folders)
        return
    if "$" in there:
        _LOGGER.warning("%s: %s is not set in this job; reading from %s", VARIABLE, there, folders[0].parent)
        yield tuple(folders)
        return
    with contextlib.ExitStack() as stack:
        yield _copied(folders, size, Path(there), stack)


def _copied(folders: Sequence[Path], size: int, there: Path, stack: contextlib.ExitStack) -> tuple[Path, ...]:
    try:
        free = shutil.disk_usage(there).free
        if free < 2 * size:
            _LOGGER.warning("%s has %.1f GB free, twice %.1f are wanted: not used", there, free / 1e9, size / 1e9)
            return tuple(folders)
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forceuq-", dir=there)))
        _LOGGER.info("copying %.1f GB of features to %s", size / 1e9, place)
        return tuple(Path(shutil.copytree(folder, place / f"{number}")) for number, folder in enumerate(folders))
    except OSError as error:
        stack.close()  # half a copy would fill the disk for the others
        _LOGGER.warning("%s: %s: not used", there, error)
        return tuple(folders)
