"""Work shared among processes, with its results in order and a bounded number of them waiting."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from forceuq.errors import ForceUQError

T = TypeVar("T")
R = TypeVar("R")
# Seconds without a result after which the processes are looked after.
_PATIENCE = 1.0


def ordered_map(function: Callable[[T], R], items: Iterable[T], processes: int, ahead: int = 2) -> Iterator[R]:
    """Yield ``function`` of each item, in the items' order, whatever the number of processes.

    Args:
        function: a module's function (it is sent to the processes by name).
        items: drawn as they are needed.
        processes: that work; 1: this one alone.
        ahead: items a process that are drawn before the first of their results is taken.

    Raises:
        ForceUQError: a process was ended from outside.
    """
    if processes == 1:
        yield from map(function, items)
        return
    with worker_pool(processes) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead * processes:
                yield result_of(pool, waiting.popleft())
        while waiting:
            yield result_of(pool, waiting.popleft())


@contextmanager
def worker_pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Start processes that end with this one; take the results of what is submitted by ``result_of``.

    Args:
        processes: how many.

    Raises:
        ForceUQError: a process was ended from outside.
    """
    # Spawned, since a fork of a process that runs threads, torch's or CUDA's too, may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise ForceUQError(
            "a worker process was ended from outside (by the kernel, when memory is short); give the job more memory "
            "or fewer threads"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def result_of(pool: ProcessPoolExecutor, future: Future[R]) -> R:
    """Wait for a result of a pool, but not for ever where a process was ended while it sent one.

    Raises:
        BrokenProcessPool: a process was ended from outside.
    """
    while not wait([future], _PATIENCE).done:
        workers = list(pool._processes.values())
        if not all(worker.is_alive() for worker in workers):
            # The pool may be reading the rest of a result, which comes to an end only when nobody is left who could
            # write it: the other processes, and this one, which never does.
            for worker in workers:
                worker.kill()
            pool._result_queue._writer.close()  # type: ignore[attr-defined]
    return future.result()


def _end_with_parent() -> None:
    """End this process when its parent is gone, even by SIGKILL: it would wait for work for ever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
