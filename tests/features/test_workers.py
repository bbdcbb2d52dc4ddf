"""Processes that build graphs, or do other work, and are ended from outside: an error soon, and none left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from forceuq.errors import ForceUQError
from forceuq.features.graphs import graph_builder

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}
NAMED = "a worker process was ended from outside"
STRUCTURES = """
import numpy as np
from forceuq.data.structures import structure
from forceuq.features.graphs import graph_builder
from forceuq.backbones import orb
def work():
    positions = np.random.default_rng(0).uniform(0, 12, (200, 3))
    item = structure("s", "g", numbers=[6] * 200, positions=positions, forces=np.zeros((200, 3)))
    while True:
        yield [(0, item)]
if __name__ == "__main__":
    with graph_builder("orb", orb.Options(architecture="forceuq-small"), 10**6, 1) as builder:
        for _ in builder.all(work()):
            print("built", flush=True)
"""


def half_a_result(item: int) -> bytes:
    """End this process, as the kernel would, in the middle of sending its result."""
    from multiprocessing.connection import Connection

    def send(self, data):
        if len(data) > 2**20:
            os.write(self.fileno(), data[: 2**10])
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, data)

    whole = Connection._send
    Connection._send = send
    return bytes(2**21) if item == 3 else b""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_process_ended_while_it_sends_is_an_error_and_no_hang(processes):
    program = f"""
from forceuq.errors import ForceUQError
from forceuq.processes import result_of, worker_pool
from test_workers import half_a_result
if __name__ == "__main__":
    try:
        with worker_pool({processes}) as pool:
            for future in [pool.submit(half_a_result, item) for item in range(8)]:
                result_of(pool, future)
    except ForceUQError as error:
        print(error)
"""
    # A process of its own: what hangs there does not hang here.
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.startswith(NAMED)


def test_a_graph_worker_ended_from_outside_is_named():
    from forceuq.backbones import orb

    def killed():
        for child in psutil.Process().children(recursive=True):
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()
                child.wait(20)
        yield []

    options = orb.Options(architecture="forceuq-small")
    with pytest.raises(ForceUQError, match=NAMED), graph_builder("orb", options, 10**6, 1) as builder:
        list(builder.all(killed()))


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_graph_workers_end_with_a_killed_job(tmp_path):
    (tmp_path / "job.py").write_text(STRUCTURES)
    with (tmp_path / "out").open("w") as output:
        job = psutil.Popen([sys.executable, tmp_path / "job.py"], env=ENVIRONMENT, stdout=output)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out").stat().st_size:
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = job.children(recursive=True)
    assert workers
    job.kill()
    job.wait()
    assert not psutil.wait_procs(workers, timeout=20)[1]
