"""The record of a job: its fields, and the digest that it carries of itself."""

from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from forceuq.errors import DataError
from forceuq.files import whole_file
from forceuq.provenance.digests import digest_of

SCHEMA: Literal["forceuq.record"] = "forceuq.record"
VERSION: Literal[1] = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Part):
    """A file inside a directory."""

    path: str = Field(description="Relative to the directory.")
    sha256: str
    size: int = Field(description="Bytes.")


class RecordReference(_Part):
    """A record, by where it lies and by its digest."""

    path: str = Field(description="Relative to the results folder.")
    digest: str


class Artefact(_Part):
    """A file or directory that went in or came out."""

    name: str = Field(description="Name that the job knows it by; several may share one.")
    path: str = Field(description="Relative to the results folder, or absolute outside of it.")
    sha256: str = Field(description="Of a directory: see forceuq.provenance.digests.tree_digest.")
    size: int = Field(description="Bytes; of a directory: of all its files.")
    directory: bool = False
    files: tuple[FileEntry, ...] | None = Field(
        default=None, description="Of a directory; None of one that went in and has a record, which lists them."
    )
    record: RecordReference | None = Field(default=None, description="Of an input: that of the job that made it.")


class Code(_Part):
    """The code that ran."""

    fingerprint: str | None = Field(description="Digest of the code that the job reaches, as it was planned.")
    modules: dict[str, str] = Field(
        description="SHA-256 of the source files of the script and of the package's modules that it had imported; "
        "each source is kept beside the records under its digest."
    )


class Git(_Part):
    """The state of the project's repository."""

    commit: str | None = Field(description="None: not in a repository, or no git.")
    dirty: bool | None
    diff: str | None = Field(default=None, description="Digest of the kept difference to the commit.")


class Software(_Part):
    """The software that ran."""

    python: str
    packages: str = Field(description="Digest of the kept list of installed packages.")
    versions: dict[str, str] = Field(description="Of the packages that this one depends on.")
    lock: str | None = Field(description="Name of the lock file of this Python; None: there is none.")
    lock_sha256: str | None


class Machine(_Part):
    """Where it ran."""

    host: str
    system: str
    cpu: str | None
    cpus: int = Field(description="That the process may use.")
    gpu: str | None = Field(description="Model of the GPU that the job used.")
    gpu_driver: str | None
    cuda: str | None
    slurm_job_id: str | None
    threads: int = Field(description="That the job was given.")
    thread_settings: dict[str, str] = Field(description="Environment variables that bound threads, and PyTorch's.")


class Usage(_Part):
    """What it took."""

    started: str = Field(description="UTC, ISO 8601.")
    ended: str
    seconds: float = Field(description="Wall-clock time, that of writing this record included.")
    recording_seconds: float = Field(description="Of those: hashing, and finding out what else stands here.")
    cpu_seconds: float = Field(description="Processor time of the process from its start, and of ended children.")
    peak_memory_bytes: int
    peak_gpu_memory_bytes: int | None


class Record(_Part):
    """What a job that succeeded wrote down about itself."""

    schema_: Literal["forceuq.record"] = Field(default=SCHEMA, alias="schema")
    version: Literal[1] = VERSION
    rule: str
    wildcards: dict[str, str]
    run: str = Field(description="Folder of results that it belongs to: a run's name, or `cache`.")
    seed: int | None
    params: dict[str, Any] = Field(description="Its part of the configuration.")
    facts: dict[str, Any] = Field(description="What the job itself found out: the address of a download, say.")
    inputs: tuple[Artefact, ...]
    outputs: tuple[Artefact, ...]
    code: Code
    git: Git
    software: Software
    machine: Machine
    usage: Usage
    digest: str = Field(description="SHA-256 of the canonical JSON of all the rest.")


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """Return a record's plain values with their digest."""
    return {**values, "digest": digest_of(values)}


def own_digest(values: dict[str, Any]) -> str:
    """Return the digest that a record's plain values should carry."""
    return digest_of({key: value for key, value in values.items() if key != "digest"})


def file_bytes(values: dict[str, Any]) -> bytes:
    """Return the one form that a record has as a file: indented JSON with sorted keys, UTF-8."""
    return orjson.dumps(values, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


def read_sealed(path: Path) -> dict[str, Any]:
    """Read plain values that carry their digest.

    Raises:
        DataError: missing, damaged or edited, be it in a space between values.
    """
    try:
        content = path.read_bytes()
        values = orjson.loads(content)
        stated = values["digest"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"cannot be read ({error!r})", file=path) from error
    if (found := own_digest(values)) != stated:
        raise DataError(f"was edited: the digest of its content is {found}, it says {stated}", file=path)
    if file_bytes(values) != content:
        raise DataError("was edited: it is not in the form in which it was written", file=path)
    return dict(values)


def read_record(path: Path) -> Record:
    """Read a record and hold it to its own digest.

    Raises:
        DataError: missing, damaged, edited, or of a version that this code does not know.
    """
    values = read_sealed(path)
    found = values.get("schema"), values.get("version")
    if found != (SCHEMA, VERSION):
        raise DataError(f"is of {found[0]} {found[1]}; this code reads {SCHEMA} {VERSION}", file=path)
    try:
        return Record.model_validate(values)
    except ValidationError as error:
        raise DataError(f"not a record of a job ({error})", file=path) from error


def write_sealed(path: Path, values: dict[str, Any]) -> str:
    """Write plain values with their digest, which is returned."""
    values = sealed(values)
    with whole_file(path) as temporary:
        temporary.write_bytes(file_bytes(values))
    return str(values["digest"])
