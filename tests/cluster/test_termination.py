"""SIGTERM, which a scheduler sends before it kills: jobs end in order, and training goes on where it was."""

import contextlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from forceuq.logs import logged

WRITES = """
import sys, time
from pathlib import Path
from forceuq.files import whole_file
from forceuq.logs import logged

folder = Path(sys.argv[1])
with logged(folder / "job.log"), whole_file(folder / "output") as temporary:
    temporary.write_text("half")
    (folder / "ready").touch()
    time.sleep(60)
"""


def test_a_job_ends_in_order(tmp_path):
    with subprocess.Popen([sys.executable, "-c", WRITES, str(tmp_path)], stderr=subprocess.PIPE, text=True) as job:
        until = time.monotonic() + 60
        while not (tmp_path / "ready").exists() and time.monotonic() < until:
            time.sleep(0.02)
        job.terminate()
        _, printed = job.communicate(timeout=20)
    assert job.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in printed
    assert "stopped by SIGTERM" in (tmp_path / "job.log").read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["job.log", "ready"]


def test_the_handler_is_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with logged(tmp_path / "job.log"):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(SystemExit), logged(tmp_path / "job.log"):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_does_not_interrupt_the_cleaning_up(tmp_path):
    cleaned = []

    @contextlib.contextmanager
    def slow_to_clean():
        try:
            yield
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned.append(True)

    with pytest.raises(SystemExit), logged(tmp_path / "job.log"), slow_to_clean():
        signal.raise_signal(signal.SIGTERM)
    assert cleaned


def test_other_threads_may_log(tmp_path):
    failed = []

    def work():
        try:
            with logged(tmp_path / "job.log"):
                pass
        except ValueError as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed
