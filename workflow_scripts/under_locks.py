"""Snakemake under locks that live as long as it does, also when the process that took them is killed."""

import fcntl
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO


def lock(file: Path, *, wait: bool) -> IO[str] | None:
    """Lock a file until the last process that has it open is gone; None where another run holds it.

    Raises:
        SystemExit: the file system has no locks.
    """
    handle = file.open("a")  # network file systems lock only what is open for writing
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        handle.close()
        return None
    except OSError as error:
        sys.exit(f"{file}: cannot be locked ({error.strerror}); `flock` must work where the results are.")
    return handle


def snakemake(locks: Sequence[IO[str]], *arguments: str, output: int | None = None) -> int:
    """Run Snakemake, which holds the locks too, pass signals on to it, and return its exit code.

    Raises:
        SystemExit: a signal ended it, or came meanwhile: what follows is not to start.
    """
    received: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _: object) -> None:
        received.append(number)
        # Ctrl-C reaches all of the terminal's process group; a second one would cut Snakemake's cleaning up short.
        if process is not None and number != signal.SIGINT:
            process.send_signal(number)

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = [(number, signal.signal(number, pass_on)) for number in numbers]
    command = [sys.executable, "-m", "snakemake", "--nolock", *arguments]
    # Jobs do not inherit the locks; those that outlive it are found by left_over.py.
    process = subprocess.Popen(command, stdout=output, stderr=output, pass_fds=[held.fileno() for held in locks])
    for number in received:  # when there was no process yet
        process.send_signal(number)
    code = process.wait()
    for number, handler in before:
        signal.signal(number, handler)
    if received or code < 0:
        sys.exit(128 - code if code < 0 else code or 128 + received[0])
    return code
