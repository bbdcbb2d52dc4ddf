"""Where records lie, and which one tells of a file.

<results>/<run or cache>/records/<rule>/<wildcards>.json    a record
records/.made/<output>.json        which record is an output's; when it was last hashed
records/.kept/<sha256>             sources, differences and package lists, by digest
records/.superseded/<digest>.json  records of jobs that ran again since
              ledger.json                        digests of all records that a run's results follow from
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from forceuq.errors import DataError
from forceuq.files import whole_file
from forceuq.provenance.digests import Stat, bytes_digest
from forceuq.provenance.schema import own_digest, read_sealed, write_sealed

RECORDS = "records"
MADE = ".made"
KEPT = ".kept"
SUPERSEDED = ".superseded"
LEDGER = "ledger.json"


@dataclass(frozen=True)
class Folder:
    """A run's folder of results, or the cache's.

    Args:
        results: the folder of all results.
        name: the run's name, or ``cache``.
    """

    results: Path
    name: str

    @property
    def path(self) -> Path:
        """The folder itself."""
        return self.results / self.name

    @property
    def records(self) -> Path:
        """Its records."""
        return self.path / RECORDS

    def record_paths(self) -> list[Path]:
        """Return the present records, in order."""
        return sorted(
            path
            for path in self.records.rglob("*.json")
            if not path.relative_to(self.records).parts[0].startswith(".") and not path.name.startswith(".")
        )


def folder_of_log(log: Path, rule: str) -> tuple[Folder, Path]:
    """Return the folder of a job and its record's place, from its log ``<folder>/logs/<rule>[/...].log``.

    Raises:
        DataError: a log that lies elsewhere.
    """
    parts = log.parts
    for i in range(len(parts) - 2, 1, -1):
        following = parts[i + 1]
        if parts[i] == "logs" and rule in (following, following.removesuffix(".log")):
            folder = Folder(Path(*parts[: i - 1]), parts[i - 1])
            return folder, folder.records.joinpath(*parts[i + 1 :]).with_suffix(".json")
    raise DataError(f"the log of a job of rule '{rule}' must lie in <results>/<run>/logs/{rule}", file=log)


def relative(path: str | Path, base: Path) -> str:
    """Return a path as records name it: relative to a folder (of the results), or absolute outside of it."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - symbolic links stay as they are
    above = Path(os.path.abspath(base))  # noqa: PTH100
    return absolute.relative_to(above).as_posix() if absolute.is_relative_to(above) else absolute.as_posix()


def note_of(results: Path, name: str) -> Path | None:
    """Return where an output's ``Made`` is kept; None: it lies outside of the results."""
    folder, _, rest = name.partition("/")
    if name.startswith("/") or not rest:
        return None
    return Folder(results, folder).records / MADE / f"{rest}.json"


@dataclass(frozen=True)
class Made:
    """Which record an output has, and what its files looked like when they were last hashed."""

    record: str
    stats: dict[str, Stat]


def write_made(results: Path, name: str, made: Made) -> None:
    """Note an output's record; ``name`` as of ``relative``."""
    path = note_of(results, name)
    if path is None:
        raise DataError("an output outside of a run's folder; it cannot be traced", file=name)
    write_sealed(path, {"record": made.record, "stats": {key: asdict(stat) for key, stat in made.stats.items()}})


def read_made(results: Path, name: str) -> Made | None:
    """Return the note of an output; None: nothing that is known made it.

    Raises:
        DataError: the note was damaged or edited.
    """
    path = note_of(results, name)
    try:
        if path is None or not path.exists():
            return None
    except OSError as error:  # a name that no file can have, from a damaged record
        raise DataError(f"cannot be read ({error})", file=path) from error
    try:
        values = read_sealed(path)
        return Made(values["record"], {key: Stat(**stat) for key, stat in values["stats"].items()})
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"damaged ({error!r}); remove the file it tells of, to make it again", file=path) from error


def keep(folder: Folder, content: bytes) -> str:
    """Store some bytes once, under their digest, which is returned."""
    digest = bytes_digest(content)
    path = folder.records / KEPT / digest
    if not path.exists():
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
    return digest


def kept(folder: Folder, digest: str) -> bytes:
    """Return what was stored under a digest.

    Raises:
        DataError: it is missing, or its bytes are others.
    """
    path = folder.records / KEPT / digest
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error})", file=path) from error
    if (found := bytes_digest(content)) != digest:
        raise DataError(f"was changed: its digest is {found}", file=path)
    return content


def supersede(folder: Folder, record: Path) -> None:
    """Set a record aside whose job runs again; those that name it by its digest still find it."""
    try:
        content = record.read_bytes()
    except FileNotFoundError:
        return
    try:
        name = own_digest(json.loads(content))
    except (ValueError, AttributeError):  # damaged
        name = bytes_digest(content)
    aside = folder.records / SUPERSEDED / f"{name}.json"
    aside.parent.mkdir(parents=True, exist_ok=True)
    record.replace(aside)
