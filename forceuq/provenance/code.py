"""Whether the code that made something is today's."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from forceuq.errors import ForceUQError
from forceuq.files import file_digest
from forceuq.fingerprint import left_out, parts_of
from forceuq.provenance.chain import Chain
from forceuq.provenance.findings import Finding, Kind
from forceuq.provenance.places import KEPT, Folder
from forceuq.provenance.schema import Record
from forceuq.source_code import analyse


def changed_files(record: Record, results: Path, project: Path) -> list[str]:
    """Return the files of a job's code that mean something else today, by path relative to the project.

    What ran is known from the sources that are kept with the record, and for files that it had not imported from
    what its fingerprint was made of (where ``<results>/cache/code`` still has that). Comments, docstrings and
    formatting do not count, nor do modules that no output depends on.

    Args:
        record: of the job.
        results: the folder of all results.
        project: the project's folder as it is today.
    """
    parts = parts_of(record.code.fingerprint, results / "cache" / "code") if record.code.fingerprint else None
    then: dict[str, str | None] = dict(parts["files"]) if parts is not None else {}
    folder = Folder(results, record.run)
    for name, digest in record.code.modules.items():
        file = _file(name, project)
        if not left_out(name) and (parts is None or file in then):
            then[file] = _meaning(folder.records / KEPT / digest)
    return sorted(file for file, meaning in then.items() if meaning != _meaning(project / file))


def _file(name: str, project: Path) -> str:
    if name.endswith(".py"):
        return name
    base = name.replace(".", "/")
    package = f"{base}/__init__.py"
    return package if (project / package).is_file() else f"{base}.py"


@cache
def _meaning(path: Path) -> str | None:
    try:
        # Kept sources have no suffix, since their names are digests.
        return analyse(path).digest if path.suffix in (".py", "") else file_digest(path)[:16]
    except (ForceUQError, OSError):
        return None


def code(chain: Chain, project: Path) -> Iterator[Finding]:
    """Find what was made by other code than today's."""
    _meaning.cache_clear()
    for path, record in chain.records.items():
        if changed := changed_files(record, chain.results, project):
            yield Finding(Kind.CODE, path, f"changed since: {', '.join(changed)}", path)
