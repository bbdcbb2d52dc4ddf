"""What a Slurm cluster says of itself, and the site file that follows from it."""

import getpass
import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from forceuq.cluster.site import Partition, Site, minutes
from forceuq.errors import ClusterError

_SINFO = "%P|%a|%l|%c|%m|%G"
# The plugin asks for states every 180 s at the latest; a job that squeue has forgotten by then is waited for in vain.
REMEMBERED_SECONDS = 200
_GPU = re.compile(r"gpu(?::(?P<model>[A-Za-z][A-Za-z0-9_.-]*))?:(?P<count>\d+)")


@dataclass(frozen=True)
class Cluster:
    """A cluster as seen from a login node.

    Args:
        partitions: those that are up, with the limits of their largest node.
        default: the partition of jobs that name none.
        accounts: that the user may charge; empty without accounting.
        accounting: whether there is a database of finished jobs.
        remembered_seconds: how long the controller remembers finished jobs (MinJobAge).
        gpus: models of GPU, with the most that a node has of it.
    """

    partitions: dict[str, Partition]
    default: str | None = None
    accounts: tuple[str, ...] = ()
    accounting: bool = False
    remembered_seconds: int | None = None
    gpus: dict[str, int] = field(default_factory=dict)


def ask(*command: str) -> str:
    """Return what a program of the scheduler prints.

    Raises:
        ClusterError: it is not there, or fails.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError:
        raise ClusterError(f"there is no '{command[0]}' here: is this a login node of a Slurm cluster?") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClusterError(f"{command[0]} does not answer: {error}") from error
    if done.returncode:
        raise ClusterError(f"{' '.join(command)}: {done.stderr.strip() or f'exit {done.returncode}'}")
    return done.stdout


def probe(asked: Callable[..., str] = ask) -> Cluster:
    """Ask sinfo, scontrol and sacctmgr about the cluster.

    Args:
        asked: what runs a command and returns its output.

    Raises:
        ClusterError: the scheduler does not answer, or in a way that is not understood.
    """
    partitions, default, gpus = parse_sinfo(asked("sinfo", "--noheader", "--format", _SINFO))
    configuration = parse_configuration(asked("scontrol", "show", "config"))
    # `none` by other names: accounting_storage/none, (null).
    accounting = "slurmdbd" in configuration.get("AccountingStorageType", "")
    accounts: tuple[str, ...] = ()
    if accounting:
        user = getpass.getuser()
        query = ("sacctmgr", "--noheader", "--parsable2", "list", "associations", f"user={user}", "format=account")
        accounts = tuple(dict.fromkeys(filter(None, asked(*query).split())))
    age = re.match(r"\d+", configuration.get("MinJobAge", ""))
    return Cluster(partitions, default, accounts, accounting, int(age[0]) if age else None, gpus)


def parse_sinfo(text: str) -> tuple[dict[str, Partition], str | None, dict[str, int]]:
    """Return partitions by name, the default one, and the nodes' GPUs by model (the most that a node has).

    Raises:
        ClusterError: a line that is not in our format.
    """
    found: dict[str, dict[str, Any]] = {}
    default = None
    gpus: dict[str, int] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        fields = line.split("|")
        if len(fields) != 6:
            raise ClusterError(f"sinfo printed {line!r}, which is not {_SINFO!r}")
        name, state, time, cpus, memory, gres = fields
        if name.endswith("*"):
            name = name[:-1]
            default = name
        if state != "up":
            continue
        limits = found.setdefault(name, {"max_threads": 1, "max_mem_mb": 1, "max_gpu": 0, "models": set()})
        # A plus says that some nodes have more.
        limits["max_threads"] = max(limits["max_threads"], int(cpus.rstrip("+")))
        limits["max_mem_mb"] = max(limits["max_mem_mb"], int(memory.rstrip("+")))
        if time not in ("infinite", "UNLIMITED", "n/a"):
            limits["max_runtime"] = time
        for gpu in _GPU.finditer(gres):
            limits["max_gpu"] = max(limits["max_gpu"], int(gpu["count"]))
            if gpu["model"]:
                limits["models"].add(gpu["model"])
                gpus[gpu["model"]] = max(gpus.get(gpu["model"], 0), int(gpu["count"]))
    partitions = {}
    for name, limits in found.items():
        models = tuple(sorted(limits.pop("models")))
        partitions[name] = Partition.model_validate({**limits, "available_gpu_models": models or None})
    return partitions, default, gpus


def parse_configuration(text: str) -> dict[str, str]:
    """Return what ``scontrol show config`` printed, by key."""
    lines = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in lines}


def propose(cluster: Cluster) -> str:
    """Return the text of a site file for a cluster, with what to decide in its comments."""
    lines = ["# This site's cluster, as it said of itself; change what is wrong. Keys: docs/slurm.md."]
    if cluster.accounts:
        if len(cluster.accounts) > 1:
            lines.append(f"# Or: {', '.join(cluster.accounts[1:])}.")
        lines.append(_plain("account", cluster.accounts[0]))
    if cluster.gpus:
        # An A100 where there is one: the paper's. Otherwise what a node has most of.
        model = min(cluster.gpus, key=lambda name: ("a100" not in name.lower(), -cluster.gpus[name], name))
        others = sorted(set(cluster.gpus) - {model})
        if others:
            lines.append(f"# Or: {', '.join(others)}. Without it, any.")
        lines.append(_plain("gpu_model", model))
    if not cluster.accounting:
        lines += ["# There is no database of finished jobs, so no efficiency report.", _plain("accounting", False)]
    remembered = cluster.remembered_seconds
    if remembered is not None and remembered < REMEMBERED_SECONDS:
        if cluster.accounting:
            lines.append(f"# The controller forgets jobs after {remembered} s, too soon for squeue.")
            lines.append(_plain("status_command", "sacct"))
        else:
            lines.append(
                f"# The controller forgets jobs after {remembered} s and there is no accounting: a run may wait for a"
                " job that has long ended. Ask for MinJobAge >= 200."
            )
    lines.append("# Strike out what your jobs must not use.")
    lines.append("partitions:")
    for name, partition in cluster.partitions.items():
        limits = partition.model_dump(exclude_none=True)
        if not limits["max_gpu"]:
            del limits["max_gpu"]
        if "available_gpu_models" in limits:
            limits["available_gpu_models"] = list(limits["available_gpu_models"])
        note = "  # the default" if name == cluster.default else ""
        lines.append(f"  {name}:{note}")
        lines += [f"    {_plain(key, value)}" for key, value in limits.items()]
    return "\n".join(lines) + "\n"


def faults_of(site: Site, cluster: Cluster) -> list[str]:
    """Return what in a site's file does not fit the cluster, each with what to do."""
    faults = []
    if site.account is None and cluster.accounts:
        faults.append(f"account: none is given; yours: {', '.join(cluster.accounts)}")
    if site.account is not None and cluster.accounting and site.account not in cluster.accounts:
        faults.append(f"account: '{site.account}' is not yours; yours: {', '.join(cluster.accounts) or 'none'}")
    if site.gpu_model is not None and site.gpu_model not in cluster.gpus:
        faults.append(f"gpu_model: no node has '{site.gpu_model}'; there are: {', '.join(cluster.gpus) or 'none'}")
    for name, partition in (site.partitions or {}).items():
        faults += _faults_of_partition(name, partition, cluster)
    if site.accounting and not cluster.accounting:
        faults.append("accounting: there is no database of finished jobs; set it to false")
    faults += _faults_of_status(site, cluster)
    return faults


def _faults_of_partition(name: str, partition: Partition, cluster: Cluster) -> list[str]:
    real = cluster.partitions.get(name)
    if real is None:
        return [f"partitions.{name}: not there, or down; there are: {', '.join(cluster.partitions)}"]
    faults = []
    for key in ("max_mem_mb", "max_threads", "max_gpu"):
        given, there = getattr(partition, key), getattr(real, key)
        if given is not None and there is not None and given > there:
            faults.append(f"partitions.{name}.{key}: {given}, but its nodes have {there}")
    if real.max_runtime is not None:
        given_minutes = minutes(partition.max_runtime) if partition.max_runtime is not None else None
        if given_minutes is None or given_minutes > minutes(real.max_runtime):
            faults.append(
                f"partitions.{name}.max_runtime: {partition.max_runtime}, but jobs may last {real.max_runtime}"
            )
    return faults


def _faults_of_status(site: Site, cluster: Cluster) -> list[str]:
    if site.status_command == "sacct":
        return [] if cluster.accounting else ["status_command: sacct answers nothing without accounting; use squeue"]
    remembered = cluster.remembered_seconds
    if remembered is None or remembered >= max(REMEMBERED_SECONDS, 3 * site.status_seconds):
        return []
    if remembered >= REMEMBERED_SECONDS:
        return [
            f"status_seconds: {site.status_seconds}; the controller remembers jobs for {remembered} s, a third is"
            " the most"
        ]
    return [f"status_command: the controller forgets jobs after {remembered} s, too soon for squeue; use sacct"]


def _plain(key: str, value: Any) -> str:
    return f"{key}: {json.dumps(value, ensure_ascii=False)}"  # JSON's values are YAML's
