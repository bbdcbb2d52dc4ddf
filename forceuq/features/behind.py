"""Calls that are made behind the one who asks for them, in order."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, ParamSpec, Self

P = ParamSpec("P")
# Calls that wait or run: what they are given stays in memory.
_WAITING = 2


class Behind(Generic[P]):
    """Calls a function in one thread of its own; a context manager.

    Args:
        function: what is called, one call after another. A call that raises an exception is the last one.
    """

    def __init__(self, function: Callable[P, object]) -> None:
        self._function = function
        self._failed = False
        self._calls: deque[Future[None]] = deque()
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        return self

    def call(self, *arguments: P.args, **named: P.kwargs) -> None:
        """Have the function called, and wait only where two calls are still to be made.

        Raises:
            Exception: what an earlier call has raised.
        """
        while len(self._calls) >= _WAITING or (self._calls and self._calls[0].done()):
            self._calls.popleft().result()
        self._calls.append(self._thread.submit(self._one, *arguments, **named))

    def wait(self) -> None:
        """Return when every call has been made.

        Raises:
            Exception: what one of them has raised.
        """
        while self._calls:
            self._calls.popleft().result()

    def _one(self, *arguments: P.args, **named: P.kwargs) -> None:
        if self._failed:
            return
        try:
            self._function(*arguments, **named)
        except BaseException:
            self._failed = True
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=kind is not None)
        if kind is None:
            self.wait()
