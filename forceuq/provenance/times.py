"""Time stamps put right: of what was touched or copied and is as it was made, and of what was changed and looks old.

A workflow engine goes by time stamps: by that of a marker file in each directory that a job made, which it takes for a
changed one when it is newer than what was made from it; and it looks at the content of newer files alone. The records
know better.
"""

import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from forceuq.errors import DataError
from forceuq.provenance.artefacts import made_artefact, stats_of
from forceuq.provenance.digests import MARKERS
from forceuq.provenance.places import Folder, Made, note_of, read_made, write_made
from forceuq.provenance.schema import read_record

_LOGGER = logging.getLogger(__name__)
CACHE = "cache"
# Bytes whose hashing is worth a word.
_MUCH = 2 * 10**9


Records = Sequence[tuple[Path, dict[str, Any]]]


def present_records(results: Path, run: str) -> Records:
    """Return the records of a run and of the caches with their paths, as plain values.

    To hold every one to its digest takes ten times as long. Damaged ones are left out: the audit tells of them.

    Args:
        results: the folder of all results.
        run: the run.
    """
    return [entry for name in (CACHE, run) for entry in _records(Folder(results, name))]


def restore_times(results: Path, records: Records) -> list[Path]:
    """Set back the markers of directories that seem newer than what was made from them, and whose content is not.

    A directory is hashed only if its files do not look as they did when they were last hashed. One whose content is
    another keeps its time stamp, and one whose record is damaged too.

    Args:
        results: the folder of all results.
        records: of ``present_records``.

    Returns:
        The markers that were set back.
    """
    first_use = _first_uses(records)
    restored = []
    for path, record in records:
        for output in record["outputs"]:
            for marker in [results / output["path"] / name for name in MARKERS if output["directory"]]:
                newer = marker.exists() and marker.stat().st_mtime > first_use[output["path"]]
                if newer and _same(results, path, output["path"]):
                    ended = _seconds(record["usage"]["ended"])
                    os.utime(marker, (ended, ended))
                    restored.append(marker)
    return restored


def renew_times(results: Path, records: Records) -> list[Path]:
    """Give the present time to files and directories that have another content than recorded under an old time stamp.

    What is made from them then follows. Looked at is what some job took, is not newer than that job, and does not look
    as it did when it was last hashed: by size, inode, or the file system's own time of the last change. That is
    hashed, and noted where it is the same; a copied folder of results is hashed once, with all cores.

    Args:
        results: the folder of all results.
        records: of ``present_records``.

    Returns:
        What was given the present time: files, and markers of directories.
    """
    first_use = _first_uses(records)
    doubtful: list[tuple[Path, dict[str, Any], Path]] = []
    for path, record in records:
        for output in record["outputs"]:
            stamped = _stamped(results / output["path"], output["directory"])
            used = stamped is not None and stamped.stat().st_mtime <= first_use[output["path"]] < math.inf
            if stamped is not None and used and not _looks_the_same(results, output["path"]):
                doubtful.append((path, output, stamped))
    if (size := sum(output["size"] for _, output, _ in doubtful)) > _MUCH:
        _LOGGER.warning("hashing %.1f GB of results that were copied or changed since they were made, once", size / 1e9)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        changed = list(pool.map(lambda each: _has_changed(results, each[0], each[1]), doubtful))
    renewed = [stamped for (_, _, stamped), other in zip(doubtful, changed, strict=True) if other]
    for stamped in renewed:
        _LOGGER.warning("%s has another content than its record says, under an old time stamp", stamped)
        os.utime(stamped)
    return renewed


def _has_changed(results: Path, path: Path, output: dict[str, Any]) -> bool:
    """Return whether an output is another than its record at ``path`` says; note how it looks where it is not."""
    try:
        found, stats = made_artefact(output["name"], results / output["path"], results)
    except DataError:  # gone: the workflow sees that itself
        return False
    if found.sha256 != output["sha256"]:
        return True
    folder = Folder(results, output["path"].partition("/")[0])
    write_made(results, output["path"], Made(path.relative_to(folder.records).as_posix(), stats))
    return False


def _stamped(path: Path, directory: bool) -> Path | None:
    """Return the file whose time stamp stands for an output's; None where there is none."""
    for found in [path / name for name in MARKERS] if directory else [path]:
        if found.is_file():
            return found
    return None


def _looks_the_same(results: Path, name: str) -> bool:
    note = note_of(results, name)
    try:
        noted = orjson.loads(note.read_bytes())["stats"] if note is not None else None
        return noted == {key: vars(stat) for key, stat in stats_of(results / name).items()}
    except (OSError, ValueError, LookupError, DataError):  # damaged: the audit says so
        return True


def _first_uses(records: Records) -> dict[str, float]:
    """Return when the first job began that took a path."""
    first_use: dict[str, float] = defaultdict(lambda: math.inf)
    for _, record in records:
        for taken in record["inputs"]:
            first_use[taken["path"]] = min(first_use[taken["path"]], _seconds(record["usage"]["started"]))
    return first_use


def _records(folder: Folder) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in folder.record_paths():
        try:
            record = orjson.loads(path.read_bytes())
            _seconds(record["usage"]["started"]), record["inputs"], record["outputs"]
        except (OSError, ValueError, LookupError, TypeError):  # damaged: the audit says so
            continue
        yield path, record


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


def _same(results: Path, path: Path, name: str) -> bool:
    """Return whether a directory is as its record says, which is held to its digest now."""
    directory = results / name
    try:
        record = read_record(path)
        output = next(output for output in record.outputs if output.path == name)
        made = read_made(results, name)
        if made is not None and made.stats == stats_of(directory):
            return True
        found, stats = made_artefact(output.name, directory, results)
    except (DataError, StopIteration):
        return False
    if found.sha256 != output.sha256:
        return False
    write_made(results, name, Made(path.relative_to(Folder(results, record.run).records).as_posix(), stats))
    return True
