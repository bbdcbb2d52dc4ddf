"""What a site's own file says of its cluster (slurm/site.yaml), and the environment that its jobs run in."""

import os
import subprocess
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from forceuq.cluster.requests import Limits
from forceuq.errors import ConfigurationError

# Programs that would write into the home directory, and the variable that each obeys.
_CACHES = {
    "XDG_CACHE_HOME": "",
    "MPLCONFIGDIR": "matplotlib",
    "TRITON_CACHE_DIR": "triton",
    "CUDA_CACHE_PATH": "cuda",
}


class Partition(BaseModel):
    """One partition, in the words of the executor plugin's partition file; what is not given is not limited."""

    model_config = ConfigDict(extra="allow", frozen=True)

    max_runtime: int | str | None = Field(default=None, description="Longest job: minutes, or D-HH:MM:SS.")
    max_mem_mb: int | None = Field(default=None, ge=1, description="Memory of a node, MB.")
    max_threads: int | None = Field(default=None, ge=1, description="Processor cores of a node.")
    max_gpu: int = Field(default=0, ge=0, description="GPUs of a node.")
    available_gpu_models: tuple[str, ...] | None = Field(default=None, description="Their models.")


class Site(BaseModel):
    """A cluster as its users see it. Everything may be left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    account: str | None = Field(default=None, description="Account that jobs are charged to.")
    qos: str | None = Field(default=None, description="Quality of service.")
    gpu_model: str | None = Field(default=None, description="GPU model to ask for, as `sinfo -o %G` names it.")
    partitions: dict[str, Partition] | None = Field(
        default=None, description="The partitions; null: those of slurm/partitions.yaml."
    )
    accounting: bool = Field(
        default=True, description="Whether `sacct` knows finished jobs: for the efficiency report."
    )
    status_command: Literal["squeue", "sacct"] = Field(
        default="squeue",
        description="What is asked for the jobs' states; squeue needs a controller that remembers jobs (MinJobAge) for"
        " 200 s or more.",
    )
    max_jobs: int = Field(default=100, ge=1, description="Jobs that are queued or running at once, at most.")
    retries: int = Field(default=3, ge=0, description="Further attempts of a job that failed.")
    array_rules: tuple[str, ...] = Field(
        default=(), description="Rules whose jobs are sent as arrays; they must all ask for the same."
    )
    status_seconds: int = Field(default=20, ge=1, description="Seconds before a job's state is asked for first.")
    latency_seconds: int = Field(default=60, ge=0, description="Seconds that a file may take to appear elsewhere.")
    setup: tuple[str, ...] = Field(
        default=(), description="Shell lines whose environment the jobs get, such as `module load cuda`."
    )
    environment: dict[str, Annotated[str, Field(coerce_numbers_to_str=True)]] = Field(
        default={}, description="Variables of the jobs' environment."
    )
    scratch: str | None = Field(
        default=None, description="Fast folder of each node's own, such as /scratch; may name variables of the job."
    )
    cache: str = Field(default=".cache", description="Where programs keep their caches, instead of the home directory.")


def load_site(file: str | Path) -> Site:
    """Read a site's file; without one, the defaults.

    Raises:
        ConfigurationError: it is not YAML, or has a key or value that means nothing.
    """
    path = Path(file)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        return Site()
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from error
    try:
        return Site.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, f['loc'])) or '(the whole)'}: {f['msg']}" for f in error.errors())
        raise ConfigurationError(f"{path}: {faults}; keys: {', '.join(Site.model_fields)}") from None


def partitions_of(site: Site, default: str | Path) -> dict[str, Partition]:
    """Return the partitions of a site, or those of the default file where it names none.

    Raises:
        ConfigurationError: the default file cannot be read.
    """
    if site.partitions is not None:
        return site.partitions
    try:
        values: dict[str, Any] = yaml.safe_load(Path(default).read_text(encoding="utf-8"))["partitions"]
        return {name: Partition.model_validate(limits) for name, limits in values.items()}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValidationError) as error:
        raise ConfigurationError(f"{default}: not a file of partitions: {error}") from error


def limits_of(partitions: dict[str, Partition], gpus: int) -> Limits:
    """Return what a job with or without GPUs may ask for at most, over all partitions that take it.

    Where none has GPUs, the limits are those of the others: the scheduler then refuses the job and says why.
    """
    able = [p for p in partitions.values() if p.max_gpu >= gpus] or list(partitions.values())
    free = Limits()
    return Limits(
        memory_mb=max((p.max_mem_mb or free.memory_mb for p in able), default=free.memory_mb),
        minutes=max((minutes(p.max_runtime) if p.max_runtime else free.minutes for p in able), default=free.minutes),
        cores=max((p.max_threads or free.cores for p in able), default=free.cores),
    )


def minutes(time: int | str) -> int:
    """Return a time limit in minutes: a number of minutes, or Slurm's D-HH, D-HH:MM, D-HH:MM:SS, HH:MM:SS, MM:SS.

    Raises:
        ConfigurationError: it is none of them.
    """
    text = str(time).strip()
    days, dash, rest = text.rpartition("-")
    fields = rest.split(":")
    try:
        numbers = [int(field) for field in fields]
        if dash:
            hours, mins, *_ = (*numbers, 0, 0)
            return 24 * 60 * int(days) + 60 * hours + mins
        if len(numbers) == 3:
            return 60 * numbers[0] + numbers[1]
        return numbers[0]
    except (ValueError, IndexError):
        raise ConfigurationError(f"max_runtime {time!r} is not a time: give minutes, or D-HH:MM:SS") from None


def job_environment(site: Site, folder: str | Path) -> dict[str, str]:
    """Return the variables that jobs get beyond those of the shell that starts them.

    Args:
        site: the site.
        folder: the repository's.

    Raises:
        ConfigurationError: a line of ``setup`` fails.
    """
    cache = Path(folder, site.cache)
    # What the user has set stays.
    variables = {name: str(cache / below) for name, below in _CACHES.items() if name not in os.environ}
    variables |= _after(site.setup)
    variables |= site.environment
    if site.scratch is not None:
        variables["FORCEUQ_SCRATCH"] = site.scratch
    return variables


def _after(lines: tuple[str, ...]) -> dict[str, str]:
    """Return the variables that shell lines change."""
    if not lines:
        return {}
    # A login shell: only there `module` is defined on many clusters.
    script = "set -e\n" + "\n".join(lines) + "\nenv -0"
    done = subprocess.run(["bash", "-lc", script], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigurationError(f"setup: {'; '.join(lines)}: {done.stderr.strip() or f'exit {done.returncode}'}")
    found = dict(line.partition("=")[::2] for line in done.stdout.split("\0") if "=" in line)
    ignored = {"_", "SHLVL", "PWD", "OLDPWD"}
    return {name: value for name, value in found.items() if os.environ.get(name) != value and name not in ignored}
