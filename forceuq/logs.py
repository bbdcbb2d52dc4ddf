"""A job's log: progress and warnings to a file and to the terminal, and a failure that explains itself."""

import contextlib
import logging
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from forceuq.errors import ForceUQError


@contextlib.contextmanager
def logged(path: str | Path) -> Iterator[logging.Logger]:
    """Send the package's log to a file and to standard error while the block runs.

    A ``ForceUQError`` ends the process with status 1 and its message alone, since the message says what to
    do; any other exception passes through with its traceback. Both are written to the file in full.
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
