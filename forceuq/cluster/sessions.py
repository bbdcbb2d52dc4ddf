"""Jobs of runs that are no longer there: a login session that is killed leaves its jobs queued and running.

What such a job writes, the next run would write too. Its result counts for nothing: the run that would have taken it
in is gone, and Snakemake runs the job again. So the next run cancels it; training goes on from its checkpoint.

Each run marks its jobs with its host and process in their names (``session_name``), so that jobs of a run that is
alive, in the same folder but with another configuration, are left alone.
"""

import getpass
import logging
import os
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from forceuq.cluster.probe import ask
from forceuq.errors import ClusterError

_LOGGER = logging.getLogger(__name__)
_NAME = re.compile(r"forceuq_(?P<host>[A-Za-z0-9-]+)_(?P<process>\d+)_")
# %j last but one and %Z last: a folder's name may hold anything.
_FORMAT = "%i|%T|%k|%j|%Z"
# Longer than any cluster's KillWait that was seen: 30 s is the default.
PATIENCE_SECONDS = 300


@dataclass(frozen=True)
class QueuedJob:
    """A job of the workflow that is queued or running.

    Args:
        identifier: Slurm's, with the tasks of an array that it stands for.
        state: Slurm's word for it.
        comment: rule and wildcards.
        host: where the run was started.
        process: of that run.
        folder: that it was started in.
    """

    identifier: str
    state: str
    comment: str
    host: str
    process: int
    folder: Path


def session_name(process: int | None = None) -> str:
    """Return the prefix of the job names of a run, this process's unless told otherwise."""
    return f"forceuq_{_host()}_{os.getpid() if process is None else process}"


def parse_queue(text: str) -> list[QueuedJob]:
    """Read what ``squeue`` printed in our format; jobs of other programs are left out."""
    jobs = []
    for line in text.splitlines():
        fields = line.split("|", 4)
        found = _NAME.match(fields[3]) if len(fields) == 5 else None
        if found is not None:
            identifier, state, comment, _, folder = fields
            jobs.append(
                QueuedJob(identifier, state, comment, found["host"], int(found["process"]), Path(folder.strip()))
            )
    return jobs


def queued_jobs(folder: Path) -> list[QueuedJob]:
    """Return this user's jobs of the workflow that were started in a folder and have not ended.

    Raises:
        ClusterError: the scheduler does not answer.
    """
    text = ask("squeue", "--noheader", "--user", getpass.getuser(), "--format", _FORMAT)
    return [job for job in parse_queue(text) if _same(job.folder, folder)]


def cancel_left_over(folder: Path, patience: float = PATIENCE_SECONDS) -> list[QueuedJob]:
    """Cancel the jobs that an earlier run in a folder left behind, wait until they have ended, and return them.

    Args:
        folder: the working directory.
        patience: seconds to wait for their end.

    Raises:
        ClusterError: the scheduler does not answer; a job does not end; or jobs belong to a run that was started on
            another host, where it may still be alive.
    """
    others = [job for job in queued_jobs(folder) if not (job.host == _host() and _alive(job.process, folder))]
    elsewhere = sorted({(job.host, job.process) for job in others if job.host != _host()})
    if elsewhere:
        runs = ", ".join(f"{host} (process {process})" for host, process in elsewhere)
        names = " ".join(_identifiers([job for job in others if job.host != _host()]))
        raise ClusterError(
            f"jobs are queued or running in {folder} for a run that was started on {runs}, and whether it still lives"
            f" cannot be seen from here. Go on there; or, if it is gone, cancel them and start again: scancel {names}"
        )
    if others:
        _LOGGER.warning(
            "An earlier run that is gone left %d jobs in the queue: cancelling them (%s)",
            len(others),
            ", ".join(job.comment for job in others[:5]) + (", ..." if len(others) > 5 else ""),
        )
        ask("scancel", *_identifiers(others))
        _wait_for_end(others, folder, patience)
    return others


def _wait_for_end(jobs: Sequence[QueuedJob], folder: Path, patience: float) -> None:
    gone = {(job.host, job.process) for job in jobs}
    until = time.monotonic() + patience
    while left := [job for job in queued_jobs(folder) if (job.host, job.process) in gone]:
        if time.monotonic() > until:
            raise ClusterError(
                f"cancelled {patience:g} s ago but not ended: jobs {' '.join(_identifiers(left))}. They still may"
                " write; start again when squeue no longer shows them"
            )
        time.sleep(1)


def _identifiers(jobs: Sequence[QueuedJob]) -> list[str]:
    return [job.identifier for job in jobs]


def _alive(process: int, folder: Path) -> bool:
    """Return whether a process of this host is a Snakemake run in a folder."""
    import psutil

    try:
        found = psutil.Process(process)
        is_snakemake = any(Path(part).name == "snakemake" for part in found.cmdline()[:4])
        return is_snakemake and _same(Path(found.cwd()), folder)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # another user's, which has got the number since
        return False


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname().partition(".")[0])[:25]
