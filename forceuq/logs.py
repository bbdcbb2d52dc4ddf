"""A job's log: progress and warnings to a file and to the terminal, and a failure that explains itself."""

import contextlib
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from forceuq.errors import ForceUQError


@contextlib.contextmanager
def logged(path: str | Path) -> Iterator[logging.Logger]:
    """Send the package's log to a file and to standard error while the block runs.

    A ``ForceUQError`` ends the process with status 1 and its message alone, since the message says what to
    do; any other exception passes through with its traceback. Both are written to the file in full. SIGTERM, which a
    scheduler sends before it kills, ends the process in order: what was half written is removed.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("forceuq")
    logger.setLevel(logging.INFO)
    file = logging.FileHandler(path, mode="a", encoding="utf-8")
    handlers: list[logging.Handler] = [file, logging.StreamHandler(sys.stderr)]
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)
    try:
        with _terminated_in_order(logger):
            yield logger
    except ForceUQError as error:
        file.handle(logger.makeRecord(logger.name, logging.ERROR, "", 0, traceback.format_exc(), (), None))
        logger.error("%s", error)
        raise SystemExit(1) from None
    except BaseException:
        file.handle(logger.makeRecord(logger.name, logging.ERROR, "", 0, traceback.format_exc(), (), None))
        raise
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


@contextlib.contextmanager
def _terminated_in_order(logger: logging.Logger) -> Iterator[None]:
    """Raise ``SystemExit`` on the first SIGTERM, so that context managers clean up."""
    # Only a main thread may; elsewhere the signal does what it did.
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        # Schedulers repeat it; a second one must not interrupt the cleaning up.
        signal.signal(number, signal.SIG_IGN)
        logger.error("stopped by SIGTERM: time limit, preemption or cancelled; training goes on from its checkpoint")
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
