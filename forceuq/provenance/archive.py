"""What an archive of a run is made of: the places in it, and its files."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from forceuq.provenance.schema import Artefact, Record

METADATA = "ro-crate-metadata.json"
CONFIGURATION = "configuration.yaml"
RESULTS = "results"
WORKFLOW = "workflow"
LOCKS = "envs"


@dataclass(frozen=True)
class BundledFile:
    """A file of an archive: its name there, where it lies now, and what it is."""

    name: str
    source: Path
    sha256: str
    size: int
    what: str


def files_of_artefact(artefact: Artefact) -> dict[str, str]:
    """Return the files of an output, relative to the results folder -> SHA-256."""
    if artefact.files is None:
        return {artefact.path: artefact.sha256}
    return {f"{artefact.path}/{file.path}": file.sha256 for file in artefact.files}


def scripts_of(records: Iterable[Record]) -> dict[str, dict[str, str]]:
    """Return the scripts that jobs ran: path in the project -> SHA-256 -> the folder that keeps such a source."""
    scripts: dict[str, dict[str, str]] = defaultdict(dict)
    for record in records:
        for name, digest in record.code.modules.items():
            if "/" in name:  # a module of the package goes by its dotted name
                scripts[name].setdefault(digest, record.run)
    return dict(scripts)


def locks_of(records: Iterable[Record]) -> dict[str, set[str]]:
    """Return the lock files that jobs found: name -> SHA-256."""
    locks: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.software.lock is not None and record.software.lock_sha256 is not None:
            locks[record.software.lock].add(record.software.lock_sha256)
    return dict(locks)
