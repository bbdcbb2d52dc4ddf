"""What a job costs: time, memory and the device it ran on, as the job itself measures them."""

import contextlib
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forceuq.errors import DataError
from forceuq.files import read_json, write_json

FILE = "cost.json"


@dataclass
class Cost:
    """What a job cost.

    Args:
        seconds: wall-clock time, without the start of the process and the imports before the measurement.
        cpu_seconds: processor time of the process and of its children that have ended.
        threads: that it was given.
        peak_memory_bytes: largest resident memory of the process so far (imports included).
        gpu: name of the GPU that it used; None: none.
        peak_gpu_memory_bytes: largest memory that PyTorch held there; None without a GPU.
        atoms: that it worked on, where that is told; None otherwise.
        work_seconds: of that work alone, once everything was loaded, where that is told; None otherwise.
        work: what else the job says of it, as plain values; None: nothing.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    threads: int = 1
    peak_memory_bytes: int = 0
    gpu: str | None = None
    peak_gpu_memory_bytes: int | None = None
    atoms: int | None = None
    work_seconds: float | None = None
    work: dict[str, Any] | None = None


@contextlib.contextmanager
def measured(directory: Path, threads: int = 1) -> Iterator[Cost]:
    """Measure a block and write its cost into a directory that the block made; nothing if the block fails.

    Args:
        directory: where ``cost.json`` is written.
        threads: that the job was given.

    Yields:
        The cost, whose ``atoms``, ``work_seconds`` and ``work`` the block may set.
    """
    cost = Cost(threads=threads)
    wall, cpu = time.perf_counter(), cpu_seconds()
    yield cost
    cost.seconds = time.perf_counter() - wall
    cost.cpu_seconds = cpu_seconds() - cpu
    cost.peak_memory_bytes = peak_memory_bytes()
    cost.gpu, cost.peak_gpu_memory_bytes = gpu_usage()
    write_json(directory / FILE, asdict(cost))


def read_cost(directory: Path) -> Cost:
    """Read what ``measured`` wrote.

    Raises:
        DataError: there is nothing, or nothing that can be read.
    """
    file = directory / FILE
    try:
        return Cost(**read_json(file))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"not the cost of a job ({error}); run the job again", file=file) from error


def cpu_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def peak_memory_bytes() -> int:
    """Return the largest resident memory of this process so far."""
    # Linux counts kibibytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def gpu_usage() -> tuple[str | None, int | None]:
    """Return the name of the GPU that this process used, and the most memory that PyTorch held there."""
    # A job that never imported torch used no GPU, and is spared the import.
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None, None
    return torch.cuda.get_device_name(), int(torch.cuda.max_memory_allocated())
