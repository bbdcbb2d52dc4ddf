"""What became of a run's earlier jobs, for those tried again: whether they may be, where not, and with more of what.

The scheduler's client tries a failed job again and knows neither that its user cancelled it nor that the node which it
failed on fails every job.
"""

import getpass
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from forceuq.cluster.probe import ask
from forceuq.errors import ClusterError

_FAILED = ("FAILED", "BOOT_FAIL", "NODE_FAIL")
_ENDED_BADLY = (*_FAILED, "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY", "PREEMPTED")
# %k last: a comment may hold anything.
_FORMAT = "%i|%T|%N|%j|%k"


@dataclass(frozen=True)
class PastJob:
    """A job that the controller still remembers.

    Args:
        identifier: Slurm's.
        state: Slurm's word for it.
        node: where it ran; empty if it did not.
        comment: rule and wildcards.
    """

    identifier: str
    state: str
    node: str
    comment: str = ""


def parse_jobs(text: str, session: str) -> list[PastJob]:
    """Read what ``squeue`` printed in our format; jobs whose name does not begin with ``session`` are left out."""
    rows = (line.split("|", 4) for line in text.splitlines())
    found = (row for row in rows if len(row) == 5 and row[3].startswith(f"{session}_"))
    return [PastJob(identifier, state, node, comment) for identifier, state, node, _, comment in found]


def past_jobs(session: str) -> list[PastJob]:
    """Return a run's jobs, also those that have ended.

    Args:
        session: prefix of the names of the run's jobs.

    Raises:
        ClusterError: the scheduler does not answer.
    """
    return parse_jobs(
        ask("squeue", "--noheader", "--states=all", "--user", getpass.getuser(), "--format", _FORMAT), session
    )


def partitions() -> dict[str, frozenset[str]]:
    """Return partition -> its nodes that can take jobs.

    Raises:
        ClusterError: the scheduler does not answer.
    """
    found: dict[str, set[str]] = {}
    for line in ask("sinfo", "--noheader", "--Node", "--responding", "--format", "%R|%N|%t").splitlines():
        partition, node, state = line.split("|")
        if state.startswith(("idle", "mix", "alloc", "comp", "plan", "resv")):
            found.setdefault(partition, set()).add(node)
    return {partition: frozenset(nodes) for partition, nodes in found.items()}


def refuse_cancelled(jobs: Iterable[PastJob]) -> None:
    """Make sure that no job of a run was cancelled: who cancels one does not want it to be started again.

    Raises:
        ClusterError: one was, and which.
    """
    cancelled = [job.identifier for job in jobs if job.state == "CANCELLED"]
    if cancelled:
        raise ClusterError(
            f"job {', '.join(cancelled)} was cancelled, by its user or an administrator: the run stops. Start it again"
            " to go on; training goes on from its checkpoint"
        )


def ends(jobs: Iterable[PastJob], wildcards: Iterable[str], attempts: int) -> list[str]:
    """Return the states in which the latest attempts of a job ended, the oldest first; fewer where they are forgotten.

    Args:
        jobs: of the run.
        wildcards: the job's, in their order; jobs of other rules with the same ones came to their end before it.
        attempts: how many there were.
    """
    mark = "_wildcards_" + "_".join(wildcards).replace("/", "_")
    badly = [job for job in jobs if job.comment.endswith(mark) and job.state in _ENDED_BADLY]
    # Slurm counts upwards; tasks of an array have the array's number before an underscore.
    badly.sort(key=lambda job: [int(part) for part in job.identifier.split("_") if part.isdigit()])
    return [job.state for job in badly[-attempts:]]


def nodes_to_avoid(jobs: Iterable[PastJob], partitions: Mapping[str, frozenset[str]]) -> list[str]:
    """Return the nodes on which jobs of a run have failed and none has ended well.

    Where those are all nodes of a partition, none of them is avoided: the fault is then rather in the jobs, and a job
    that may go nowhere would wait for ever.
    """
    failed = Counter(job.node for job in jobs if job.state in _FAILED and job.node)
    good = {job.node for job in jobs if job.state == "COMPLETED"}
    bad = set(failed) - good
    for nodes in partitions.values():
        if nodes <= bad:
            bad -= nodes
    return sorted(bad)
