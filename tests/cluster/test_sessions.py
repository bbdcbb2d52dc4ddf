"""Jobs that a killed run left in the queue: found, told from those of a run that lives, cancelled."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forceuq.cluster import sessions
from forceuq.cluster.sessions import cancel_left_over, parse_queue, session_name
from forceuq.errors import ClusterError

# The user's own process numbers end far below this.
GONE = 2**22 + 1

SQUEUE = """#!/bin/sh
cat "{folder}/queue"
"""
SCANCEL = """#!/bin/sh
echo "$@" >> "{folder}/cancelled"
{effect}
"""


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """Return a function that puts jobs into the queue of stand-ins for squeue and scancel."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def put(*lines: str, effect: str = ': > "{folder}/queue"') -> None:
        (tmp_path / "queue").write_text("".join(f"{line}\n" for line in lines))
        effect = effect.format(folder=tmp_path)
        for name, text in (("squeue", SQUEUE), ("scancel", SCANCEL)):
            (programs / name).write_text(text.format(folder=tmp_path, effect=effect))
            (programs / name).chmod(0o755)

    return put


def cancelled(folder: Path) -> list[str]:
    file = folder / "cancelled"
    return file.read_text().split() if file.exists() else []


def job(identifier: str, process: int, folder: Path, host: str | None = None) -> str:
    name = session_name(process) if host is None else f"forceuq_{host}_{process}"
    return f"{identifier}|RUNNING|rule_fit_wildcards_bll|{name}_0a1f6423-59ab|{folder}"


def test_the_queue_is_read_and_other_programs_are_left_out():
    text = "17_[2-3]|PENDING|rule_fit|forceuq_login-1_99_0a1f|/a|b\n18|RUNNING|(null)|interactive|/a\n19|RUNNING|x\n"
    (found,) = parse_queue(text)
    assert (found.identifier, found.host, found.process, found.folder) == ("17_[2-3]", "login-1", 99, Path("/a|b"))


def test_jobs_of_a_run_that_is_gone_are_cancelled(queue, tmp_path):
    queue(job("5", GONE, tmp_path), job("6_[1-2]", GONE, tmp_path), job("7", GONE, tmp_path / "elsewhere"))
    assert [found.identifier for found in cancel_left_over(tmp_path)] == ["5", "6_[1-2]"]
    assert cancelled(tmp_path) == ["5", "6_[1-2]"]


def test_an_empty_queue_cancels_nothing(queue, tmp_path):
    queue()
    assert cancel_left_over(tmp_path) == []
    assert cancelled(tmp_path) == []


def test_jobs_of_a_run_that_lives_are_left(queue, tmp_path):
    script = tmp_path / "snakemake"
    script.write_text("import time; time.sleep(60)")
    with subprocess.Popen([sys.executable, str(script)], cwd=tmp_path) as alive:
        try:
            queue(job("5", alive.pid, tmp_path))
            assert cancel_left_over(tmp_path) == []
            assert cancelled(tmp_path) == []
        finally:
            alive.kill()
    # The same number, no longer a run.
    queue(job("5", alive.pid, tmp_path))
    assert len(cancel_left_over(tmp_path)) == 1


def test_a_process_that_is_no_run_here_does_not_count(queue, tmp_path):
    queue(job("5", os.getpid(), tmp_path))
    assert len(cancel_left_over(tmp_path)) == 1


def test_a_run_on_another_host_is_not_judged(queue, tmp_path):
    queue(job("5", GONE, tmp_path), job("6", 7, tmp_path, host="another-login"))
    with pytest.raises(ClusterError, match=r"another-login \(process 7\).*scancel 6$"):
        cancel_left_over(tmp_path)
    assert cancelled(tmp_path) == []


def test_jobs_that_take_time_to_end_are_waited_for(queue, tmp_path):
    queue(job("5", GONE, tmp_path), effect='(sleep 1.5; : > "{folder}/queue") &')
    began = time.monotonic()
    assert len(cancel_left_over(tmp_path)) == 1
    assert time.monotonic() - began > 1.0


def test_jobs_that_do_not_end_stop_the_run(queue, tmp_path):
    queue(job("5", GONE, tmp_path), effect=":")
    with pytest.raises(ClusterError, match="jobs 5. They still may write"):
        cancel_left_over(tmp_path, patience=0.1)


def test_a_scheduler_that_does_not_answer_stops_the_run(queue, tmp_path):
    queue()
    (tmp_path / "bin/squeue").write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2; exit 1\n")
    with pytest.raises(ClusterError, match="Unable to contact"):
        cancel_left_over(tmp_path)


def test_names_are_what_the_plugin_takes(monkeypatch):
    monkeypatch.setattr(sessions.socket, "gethostname", lambda: "login_1" + "x" * 40 + ".cluster.example.org")
    name = session_name(2**22)
    assert len(name) <= 50
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    assert parse_queue(f"1|RUNNING|c|{name}_uuid|/x")[0].process == 2**22
