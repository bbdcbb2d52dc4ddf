"""Work shared among processes, with its results in order and a bounded number of them waiting."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from forceuq.errors import ForceUQError

T = TypeVar("T")
R = TypeVar("R")


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
    # Spawned, since a fork of a process that runs threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent)
    try:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ForceUQError(
            "a worker process was ended from outside (by the kernel, when memory is short); give the job more memory "
            "or fewer threads"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End this process when its parent is gone, even by SIGKILL: it would wait for work for ever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
