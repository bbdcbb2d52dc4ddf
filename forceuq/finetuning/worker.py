"""One of the processes that fit a method together.

``forceuq.finetuning.launch`` starts them. By hand, it would be ``torchrun --standalone --nproc-per-node 4 -m
forceuq.finetuning.worker work.json``, with the file that ``Work.save`` writes.
"""

import logging
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from forceuq.errors import ForceUQError
from forceuq.files import whole_file
from forceuq.methods import TrainingData, load_method

# Of the checkpoints' directory: where the first process leaves the fit.
FITTED = "fitted"


@dataclass(frozen=True)
class Work:
    """What the processes do: a fit, as ``forceuq.methods.MethodModule.fit`` is told it.

    Args:
        kind: of method.
        data: what it is fitted to.
        options: of the kind.
        seed: of everything random.
        checkpoints: directory of the checkpoints.
        threads: of each process.
        parent: process id without which the work makes no sense; None: any.
    """

    kind: str
    data: TrainingData
    options: dict[str, Any]
    seed: int
    checkpoints: Path
    threads: int
    parent: int | None = None

    def save(self, path: Path) -> None:
        """Write a file for ``read_work``."""
        with whole_file(path) as temporary:
            temporary.write_bytes(TypeAdapter(Work).dump_json(self))


def read_work(path: Path) -> Work:
    """Read what ``Work.save`` wrote."""
    return TypeAdapter(Work).validate_json(path.read_bytes())


def work(path: Path) -> None:
    """Fit, together with the processes beside this one; the first saves the fit."""
    import torch

    todo = read_work(path)
    if todo.parent is not None:
        threading.Thread(target=_end_with, args=(todo.parent,), daemon=True).start()
    torch.set_num_threads(todo.threads)
    first = os.environ["RANK"] == "0"
    logging.basicConfig(level=logging.INFO if first else logging.ERROR, format="%(message)s")
    method = load_method(todo.kind)
    fit = method.fit(todo.data, method.Options(**todo.options), todo.seed, todo.checkpoints)
    if first:
        fit.save(todo.checkpoints / FITTED)


def _end_with(parent: int) -> None:
    # A job that is killed cannot end its processes any more, and they would write over its successor's checkpoint.
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def main() -> None:
    """Run ``work``; what stops it goes to the file that torchrun reads errors from."""
    from torch.distributed.elastic.multiprocessing.errors import record

    try:
        record(work)(Path(sys.argv[1]))
    except ForceUQError:
        sys.exit(1)


if __name__ == "__main__":
    main()
