"""Where a training keeps its checkpoints."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def checkpoints_of(folder: Path, code: str) -> Iterator[Path]:
    """Give the folder for checkpoints of a job, and remove it with all others of that job when the job is done.

    A training that was interrupted goes on only by the code that began it: epochs of two versions would make a model
    that neither of them makes.

    Args:
        folder: of the job; kept when the job fails.
        code: digest of the code that the job runs.
    """
    yield folder / code
    shutil.rmtree(folder, ignore_errors=True)
