"""Time stamps given back to directories that were touched or copied, and are as they were made.

A workflow engine goes by the time stamp of a marker file in each directory that a job made, and takes a directory
that is newer than what was made from it for a changed one. The records know better.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from forceuq.errors import DataError
from forceuq.provenance.artefacts import made_artefact, stats_of
from forceuq.provenance.digests import MARKERS
from forceuq.provenance.places import Folder, Made, read_made, write_made
from forceuq.provenance.schema import read_record

CACHE = "cache"


def restore_times(results: Path, run: str) -> list[Path]:
    """Set back the markers of directories that seem newer than what was made from them, and whose content is not.

    A directory is hashed only if its files do not look as they did when they were last hashed. One whose content is
    another keeps its time stamp, and one whose record is damaged too.

    Args:
        results: the folder of all results.
        run: the run, which is looked at together with the caches.

    Returns:
        The markers that were set back.
    """
    records = [entry for name in (CACHE, run) for entry in _records(Folder(results, name))]
    first_use: dict[str, float] = defaultdict(lambda: float("inf"))
    for _, record in records:
        for taken in record["inputs"]:
            first_use[taken["path"]] = min(first_use[taken["path"]], _seconds(record["usage"]["started"]))
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


def _records(folder: Folder) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the records as plain values: to hold every one to its digest takes ten times as long."""
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
