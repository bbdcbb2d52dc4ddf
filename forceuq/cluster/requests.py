"""What a job asks a cluster for: memory, time, cores and GPUs, from what it will do.

The rates are those of the slowest machine that is still meant: jobs that ask for too little die, those that ask for
too much wait somewhat longer. Times hold a factor of three over what was measured or published:

* reading MPtrj's JSON is bound by its parser, a core;
* on one core ``forceuq-small`` caches 1,700 atoms a second (2,200 in docs/rmd17-small.md), and training the last hidden
  layer on cached features does 50,000, validation included;
* on MPtrj the paper reports epochs of 130 s with a frozen Orb-v3 and of 184 s for LoRA, each on four A100s, 70 of
  them, and 200 to 300 epochs on rMD17. At 49 million atoms at most that is 76,000 and 53,000 atoms a second and GPU.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

MARGIN = 3.0

# Interpreter, PyTorch and the Snakemake processes that wait beside the job; each with CUDA's own some GB more.
BASE_MB = 2500
GPU_BASE_MB = 6000
# The workflow's own processes without PyTorch.
LIGHT_MB = 1500
# Records and row groups on their way.
READING_MB = 4000
# They read and shuffle beside each GPU.
CORES_PER_GPU = 4
# A process that parses a piece of a raw file (forceuq.data.sources).
PARSER_MB = 300
# A process that builds graphs (forceuq.features.extract).
WORKER_MB = 1200
# A process that draws structures (forceuq.bootstrap).
COMPARER_MB = 600
# Features held for shuffled reads, at most (forceuq.bll.batches), and once more while they are put together.
POOL_BYTES = 2 * 3 * 2**28

# Atoms a second.
READ = 20_000
SPLIT = 500_000
CACHED_TRAINING = {"cpu": 50_000, "cuda": 300_000}
CACHED_PASS = 200_000
EVALUATE = 200_000
LABEL = 200
# Atoms times draws, and atoms times grid points, a second; measured as 16 to 55 (benchmarks/bootstrap.py) and 490
# million on one core.
BOOTSTRAP = 15_000_000
SURFACE = 400_000_000

# Epochs until the patience ends: a small data set takes 200 to 300, MPtrj 70 (the paper, appendix).
EPOCHS_SMALL, EPOCHS_LARGE, LARGE_ATOMS = 300, 100, 2_000_000

# Jobs shorter than this are not worth another core, nor another queue.
SHORT_SECONDS = 900


@dataclass(frozen=True)
class Request:
    """What one job asks for.

    Args:
        memory_mb: of main memory, MB.
        minutes: of wall-clock time.
        cores: processor cores.
        gpus: GPUs, all on the job's node.
    """

    memory_mb: int
    minutes: int
    cores: int = 1
    gpus: int = 0

    def retried(self, attempt: int, ends: Sequence[str] = ()) -> "Request":
        """Return the request of a later attempt: memory and time doubled by each earlier one.

        Args:
            attempt: from 1.
            ends: Slurm's words for how earlier attempts ended, where they are known. A time-out then leaves the memory
                as it is, and a memory kill the time. Without cgroups a memory kill is called FAILED, as much else is:
                both grow.
        """
        earlier = attempt - 1
        timeouts, kills = (sum(end in words for end in ends) for words in (("TIMEOUT", "DEADLINE"), ("OUT_OF_MEMORY",)))
        return replace(
            self,
            memory_mb=self.memory_mb * 2 ** max(0, earlier - timeouts),
            minutes=self.minutes * 2 ** max(0, earlier - kills),
        )

    def within(self, limits: "Limits") -> "Request":
        """Return the request cut down to what the cluster grants at most.

        Time may be cut: training goes on from its checkpoint in the next attempt.
        """
        return replace(
            self,
            memory_mb=min(self.memory_mb, limits.memory_mb),
            minutes=min(self.minutes, limits.minutes),
            cores=min(self.cores, limits.cores),
        )


@dataclass(frozen=True)
class Limits:
    """What the largest node of a kind has, and how long it lends it: MB, minutes, cores."""

    memory_mb: int = 2**31
    minutes: int = 2**31
    cores: int = 2**31


@dataclass(frozen=True)
class Speed:
    """Atoms a second of a backbone, forwards, on one core and on one GPU; training takes ``TRAINING`` times as long."""

    core: float = 30.0
    gpu: float = 76_000.0


TRAINING = {"cpu": 3.0, "cuda": 1.5}


def generating(atoms: int) -> Request:
    """Return what labelling structures with a cheap model asks for."""
    return _request(LIGHT_MB, atoms / LABEL, cores=1)


def reading(atoms: int, processes: int = 1) -> Request:
    """Return what reading a raw file into structures asks for: a stream, so memory does not grow with it.

    Args:
        atoms: in it.
        processes: that the reader can use.
    """
    if atoms / READ <= SHORT_SECONDS:
        return _request(READING_MB, atoms / READ)
    return _request(READING_MB + processes * PARSER_MB, atoms / READ / processes, cores=processes)


def splitting(structures: int, atoms: int) -> Request:
    """Return what cutting a data set into parts asks for: ids, groups and energies are held, some 500 B each."""
    return _request(LIGHT_MB + structures * 500 // 10**6, atoms / SPLIT, cores=1)


def caching(atoms: int, speed: Speed, device: str, workers: int) -> Request:
    """Return what computing atom features asks for: graphs are built on the CPU beside the model."""
    if device == "cuda":
        request = _request(GPU_BASE_MB + workers * WORKER_MB, atoms / speed.gpu, cores=workers + 1)
        return replace(request, gpus=1)
    return _request(BASE_MB + workers * WORKER_MB, atoms / speed.core)


def fitting(
    atoms: int,
    epochs: int,
    device: str,
    speed: Speed | None = None,
    width: int = 256,
    memory_gb: float = 0.0,
    devices: int = 1,
    features_gib: float | None = None,
) -> Request:
    """Return what a fit asks for.

    Args:
        atoms: that are trained and validated on.
        epochs: of training, at most; 0: none.
        device: cpu or cuda.
        speed: of the backbone, for methods that run it; None: they work on cached features.
        width: features of an atom.
        memory_gb: that the method holds beside its data, GiB.
        devices: GPUs that share each batch, or processes where ``device`` is cpu.
        features_gib: node features that are held in the node's memory, where ``device`` is cpu; None: the usual.
    """
    gpus = devices if device == "cuda" else 0
    expected = min(epochs, EPOCHS_SMALL if atoms < LARGE_ATOMS else EPOCHS_LARGE)
    if speed is None:
        seconds = atoms * (expected / CACHED_TRAINING[device] / max(gpus, 1) + 2 / CACHED_PASS)
        pool = POOL_BYTES if gpus or features_gib is None else 2 * features_gib * 2**30
        held = min(pool, 2 * atoms * (4 * width + 24)) if expected else 0
    else:
        rate = gpus * speed.gpu if gpus else speed.core
        seconds = atoms * (expected * TRAINING[device] + 2) / rate
        held = 0
    memory = (GPU_BASE_MB * gpus or BASE_MB * devices) + (held + memory_gb * 2**30) / 10**6
    request = _request(memory, seconds, cores=CORES_PER_GPU * gpus)
    return replace(request, gpus=gpus, cores=max(request.cores, devices))


def predicting(atoms: int, device: str, speed: Speed | None = None, passes: int = 1, memory_gb: float = 0.0) -> Request:
    """Return what predicting asks for; like ``fitting``, one pass or several and no training."""
    rate = CACHED_PASS / 10 if speed is None else (speed.gpu if device == "cuda" else speed.core)
    gpus = int(device == "cuda")
    memory = (GPU_BASE_MB if gpus else BASE_MB) + memory_gb * 2**30 / 10**6
    return replace(_request(memory, passes * atoms / rate, cores=CORES_PER_GPU * gpus), gpus=gpus)


def evaluating(atoms: int, held_atoms: int) -> Request:
    """Return what working on predictions asks for.

    Args:
        atoms: of all predictions that are read, together.
        held_atoms: of the largest prediction that is held in memory.
    """
    # Target, mean and two covariances are 18 doubles an atom, and as much again for what is computed from them, twice.
    return _request(LIGHT_MB + held_atoms * 18 * 8 * 3 / 10**6, atoms / EVALUATE, cores=1)


def drawing_surfaces(atoms: int, held_atoms: int, points: int) -> Request:
    """Return what likelihoods over a grid of points ask for; like ``evaluating``."""
    request = evaluating(0, held_atoms)
    return _request(request.memory_mb, atoms / EVALUATE + atoms * points / SURFACE, cores=1)


def comparing(atoms: int, draws: int) -> Request:
    """Return what the paired bootstrap asks for, with its draws; it holds no atoms, and each core works by itself."""
    request = _request(LIGHT_MB, 2 * atoms / EVALUATE + atoms * draws / BOOTSTRAP)
    return replace(request, memory_mb=request.memory_mb + COMPARER_MB * (request.cores - 1))


def _request(memory_mb: float, seconds: float, cores: int = 0) -> Request:
    """Round up; where ``cores`` is not given, take up to eight when one would take long."""
    needed = MARGIN * seconds
    if not cores:
        cores = max(1, min(8, math.ceil(needed / (4 * SHORT_SECONDS))))
        needed /= 1 + (cores - 1) / 2  # cores help half as much as they should
    # Whole hundreds of MB, and steps of ten minutes: a queue sorts by them.
    return Request(100 * math.ceil(memory_mb / 100), 10 * math.ceil((needed / 60 + 10) / 10), cores)
