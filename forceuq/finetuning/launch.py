"""Starts the processes that fit a method together, as torchrun does, and waits for them. Imports torch."""

import contextlib
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from forceuq import errors
from forceuq.errors import FitError, ForceUQError
from forceuq.finetuning import worker
from forceuq.finetuning.source import check_device
from forceuq.methods import TrainingData, load_method

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def fit_together(
    kind: str,
    data: TrainingData,
    options: Mapping[str, Any],
    seed: int,
    checkpoints: Path,
    *,
    processes: int,
    device: str,
) -> Any:
    """Fit a method in several processes of this node, and return what the kind's ``load`` returns.

    Args:
        kind: of method; its ``fit`` trains with ``forceuq.finetuning.processes.Processes``.
        data: what it is fitted to.
        options: of the kind.
        seed: of everything random.
        checkpoints: directory of the checkpoints.
        processes: how many; on ``cuda`` each has a GPU of its own, on ``cpu`` its part of this process's threads.
        device: where.

    Raises:
        ConfigurationError: fewer GPUs than processes.
        ForceUQError: what stopped one of the processes, as that process raised it; the others are ended.
        FitError: a process that ended otherwise, naming it.
    """
    check_device(device, processes)
    threads = max(1, torch.get_num_threads() // processes)
    file = checkpoints / "work.json"
    worker.Work(kind, data, dict(options), seed, checkpoints, threads, os.getpid()).save(file)
    command = ("-m", worker.__name__, str(file))
    with tempfile.TemporaryDirectory() as logs, _surroundings(threads), _own_signals():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)(*command)
        except ChildFailedError as error:
            raise _cause(error.failures, processes) from error
    return load_method(kind).load(checkpoints / worker.FITTED, data.backbone)


@contextlib.contextmanager
def _surroundings(threads: int) -> Iterator[None]:
    """Set what the processes find in their environment: their threads, and where this forceuq lies."""
    root = str(Path(errors.__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    added = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Have signals end the processes first, then do what they did before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    received = None
    try:
        yield
    except SignalException as error:
        received = error.sigval
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received is not None:
        os.kill(os.getpid(), received)
        raise FitError(f"stopped by {received.name}; the next run goes on from the last epoch")


def _cause(failures: Mapping[int, ProcessFailure], processes: int) -> ForceUQError:
    """Return the error of the process that failed by itself: the others' connections to it broke."""

    def by_itself(rank: int) -> tuple[int, int, int]:
        failure = failures[rank]
        # SIGTERM is how the others are stopped.
        killed = failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM
        kind = 0 if _error_class(failure) else 1 if killed else 2 if failure.exitcode > 0 else 3
        return kind, int(failure.timestamp), rank

    rank = min(failures, key=by_itself)
    failure = failures[rank]
    name, _, text = _message(failure).partition(": ")
    if found := _error_class(failure):
        return found(text)
    what = f"ended by {failure.signal_name()}" if failure.exitcode < 0 else f"failed ({name}: {text})"
    hint = " (out of memory?)" if failure.exitcode == -signal.SIGKILL else ""
    return FitError(
        f"process {rank} of {processes} {what}{hint}; the others were stopped. The next run goes on from the last epoch"
    )


def _message(failure: ProcessFailure) -> str:
    # With an error file it is a mapping, whatever its annotation says.
    found: Any = failure.message
    return str(found["message"] if isinstance(found, Mapping) else found)


def _error_class(failure: ProcessFailure) -> type[ForceUQError] | None:
    found = getattr(errors, _message(failure).partition(": ")[0], None)
    return found if isinstance(found, type) and issubclass(found, ForceUQError) else None
