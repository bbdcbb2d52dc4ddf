"""The inputs and outputs of a job with their digests; a file is hashed again only if it may have changed."""

from dataclasses import dataclass
from pathlib import Path

from forceuq.errors import DataError
from forceuq.provenance.digests import Stat, files_of, hashed, tree_digest
from forceuq.provenance.places import Folder, Made, read_made, relative, write_made
from forceuq.provenance.schema import Artefact, FileEntry, RecordReference, read_record

# Files that a message names; more are counted.
_NAMED = 5


@dataclass(frozen=True)
class Taken:
    """An input, and what its files looked like when the job began."""

    path: Path
    artefact: Artefact
    stats: dict[str, Stat]


def stats_of(path: Path) -> dict[str, Stat]:
    """Return the state of a file, or of each file of a directory, by its name in it ("" for a file).

    Raises:
        DataError: there is nothing.
    """
    try:
        return {name: Stat.of(file) for name, file in files_of(path)}
    except OSError as error:
        raise DataError(f"cannot be read ({error})", file=path) from error


def made_artefact(name: str, path: Path, results: Path) -> tuple[Artefact, dict[str, Stat]]:
    """Hash an output.

    Raises:
        DataError: it is not there.
    """
    entries, stats = _hash(path)
    return _artefact(name, path, results, entries), stats


def taken_artefact(name: str, path: Path, results: Path) -> Taken:
    """Return an input with its digest, and the record of the job that made it.

    The digest is the record's where the input's files look as they did when they were last hashed; else they are
    hashed, and held to the record.

    Raises:
        DataError: it is missing, or not what its record says, or its record was edited.
    """
    stats = stats_of(path)
    place = relative(path, results)
    made = read_made(results, place)
    if made is None:
        entries, stats = _hash(path)
        return Taken(path, _artefact(name, path, results, entries), stats)
    file = Folder(results, place.partition("/")[0]).records / made.record
    record = read_record(file)
    output = next((output for output in record.outputs if output.path == place), None)
    if output is None:
        raise DataError(f"does not tell of {path}; remove that, to make it again", file=file)
    if stats != made.stats:
        entries, stats = _hash(path)
        found = _artefact(name, path, results, entries)
        if found.sha256 != output.sha256:
            raise DataError(
                f"is not what the job of its record ({file}) made: SHA-256 {found.sha256}, not {output.sha256}"
                f"{_differing(path, found, output)}. Remove it, to make it again",
                file=path,
            )
        write_made(results, place, Made(made.record, stats))
    reference = RecordReference(path=relative(file, results), digest=record.digest)
    return Taken(path, output.model_copy(update={"name": name, "files": None, "record": reference}), stats)


def _differing(path: Path, found: Artefact, recorded: Artefact) -> str:
    """Return words on the files of a directory that are not as recorded; none on a file."""
    is_, was = ({entry.path: entry.sha256 for entry in each.files or ()} for each in (found, recorded))
    names = sorted(name for name in is_.keys() | was.keys() if is_.get(name) != was.get(name))
    listed = ", ".join(str(path / name) for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f" (changed, missing or added: {listed}{more})" if names else ""


def _hash(path: Path) -> tuple[dict[str, tuple[str, int]], dict[str, Stat]]:
    entries, stats = {}, {}
    try:
        for name, file in files_of(path):
            digest, stat = hashed(file)
            entries[name], stats[name] = (digest, stat.size), stat
    except OSError as error:
        raise DataError(f"cannot be read ({error})", file=path) from error
    return entries, stats


def _artefact(name: str, path: Path, results: Path, entries: dict[str, tuple[str, int]]) -> Artefact:
    directory = path.is_dir()
    files = tuple(FileEntry(path=key, sha256=digest, size=size) for key, (digest, size) in entries.items())
    return Artefact(
        name=name,
        path=relative(path, results),
        sha256=tree_digest(entries) if directory else entries[""][0],
        size=sum(size for _, size in entries.values()),
        directory=directory,
        files=files if directory else None,
    )
