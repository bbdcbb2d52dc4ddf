"""What every job does around its work: it logs, holds its inputs to their records, and records itself last."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from forceuq.errors import DataError
from forceuq.logs import logged
from forceuq.measurement import cpu_seconds, gpu_usage, peak_memory_bytes
from forceuq.provenance import environment
from forceuq.provenance.artefacts import Taken, made_artefact, stats_of, taken_artefact
from forceuq.provenance.places import Made, folder_of_log, keep, supersede, write_made
from forceuq.provenance.schema import SCHEMA, VERSION, Artefact, Code, Usage, write_sealed


class Job(Protocol):
    """The plain description of a job: what a workflow engine hands to a script.

    ``wildcards``, ``params``, ``input`` and ``output`` have ``items()``; inputs and outputs are a path or several.
    """

    rule: str
    wildcards: Any
    params: Any
    input: Any
    output: Any
    log: Any
    threads: int


class Recording:
    """A job that runs; ``facts`` takes what the job finds out about where its data came from."""

    def __init__(self, job: Job, root: Path) -> None:
        """Note what there is before the job, hashing its inputs where no record has vouched for them yet."""
        self.facts: dict[str, Any] = {}
        self._job = job
        self._root = root
        self._clock = time.perf_counter()
        self._started = datetime.now(UTC)
        self._folder, self._path = folder_of_log(Path(str(job.log[0])), job.rule)
        # From here on there is no record that says success, until this job has ended well.
        supersede(self._folder, self._path)
        self._inputs = [taken_artefact(name, Path(path), self._folder.results) for name, path in _paths(job.input)]
        self._sources = self._read_sources()
        self._recording = time.perf_counter() - self._clock

    def finish(self) -> None:
        """Write the record.

        Raises:
            DataError: an input changed while the job ran, an output is missing, a record cannot be written.
        """
        began = time.perf_counter()
        job, results = self._job, self._folder.results
        for taken in self._inputs:
            _unchanged(taken)
        outputs: list[Artefact] = []
        made: list[Made] = []
        for name, path in _paths(job.output):
            artefact, stats = made_artefact(name, Path(path), results)
            outputs.append(artefact)
            made.append(Made(self._path.relative_to(self._folder.records).as_posix(), stats))
        sources = {**self._read_sources(), **self._sources}
        git, difference = environment.git_state(self._root)
        if difference is not None:
            git = git.model_copy(update={"diff": keep(self._folder, difference)})
        installed = environment.packages()
        params = dict(job.params.items())
        values: dict[str, Any] = {
            "schema": SCHEMA,
            "version": VERSION,
            "rule": job.rule,
            "wildcards": {name: str(value) for name, value in job.wildcards.items()},
            "run": self._folder.name,
            "seed": _seed(job),
            "params": plain(params),
            "facts": plain(self.facts),
            "inputs": [taken.artefact.model_dump() for taken in self._inputs],
            "outputs": [artefact.model_dump() for artefact in outputs],
            "code": Code(
                fingerprint=params.get("code"),
                modules={name: keep(self._folder, content) for name, content in sorted(sources.items())},
            ).model_dump(),
            "git": git.model_dump(),
            "software": environment.software(self._root, installed, keep(self._folder, installed)).model_dump(),
            "machine": environment.machine(job.threads).model_dump(),
        }
        now = time.perf_counter()
        values["usage"] = Usage(
            started=self._started.isoformat(timespec="milliseconds"),
            ended=datetime.now(UTC).isoformat(timespec="milliseconds"),
            seconds=now - self._clock,
            recording_seconds=self._recording + now - began,
            cpu_seconds=cpu_seconds(),
            peak_memory_bytes=peak_memory_bytes(),
            peak_gpu_memory_bytes=gpu_usage()[1],
        ).model_dump()
        # Tuples become lists, as they will be when the record is read.
        values = json.loads(json.dumps(values, allow_nan=False))
        supersede(self._folder, self._path)
        write_sealed(self._path, values)
        for artefact, note in zip(outputs, made, strict=True):
            write_made(results, artefact.path, note)

    def _read_sources(self) -> dict[str, bytes]:
        return {name: path.read_bytes() for name, path in environment.sources(self._root).items()}


@contextlib.contextmanager
def recorded(job: Job, root: Path = environment.PROJECT) -> Iterator[Recording]:
    """Log a job's block (``forceuq.logs.logged``) and, if it ends well, write its record.

    The record lies where the log does, with ``records`` for ``logs``: ``<results>/<run>/records/<rule>/...json``.
    A job that fails, or whose record cannot be written, has none.

    Args:
        job: the job.
        root: the project's folder.

    Yields:
        The recording, whose ``facts`` the block may fill.

    Raises:
        SystemExit: after a ``ForceUQError``, also of the recording: an input is not what its record says.
    """
    with logged(job.log[0]):
        recording = Recording(job, root)
        yield recording
        recording.finish()


def plain(value: Any) -> Any:
    """Return a value made of what JSON has; paths as text, tuples and sets as (sorted) lists.

    Raises:
        DataError: something else, which a record could not hold faithfully.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return [plain(item) for item in sorted(value)]
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    raise DataError(f"a record cannot hold {value!r} ({type(value).__name__}); give plain values as params")


def _paths(named: Any) -> Iterator[tuple[str, str]]:
    """Yield (name, path) of a job's inputs or outputs."""
    for name, value in named.items():
        for path in [value] if isinstance(value, (str, Path)) else value:
            yield name, str(path)


def _seed(job: Job) -> int | None:
    seed = dict(job.wildcards.items()).get("seed")
    return None if seed is None else int(seed)


def _unchanged(taken: Taken) -> None:
    if stats_of(taken.path) != taken.stats:
        raise DataError("was changed while the job that reads it ran; run again", file=taken.path)
