"""The single checks of an audit; each yields what it finds."""

from collections.abc import Iterator, Mapping, Set
from pathlib import Path, PurePosixPath
from typing import Any

from forceuq.errors import DataError
from forceuq.provenance.chain import Chain, older_record
from forceuq.provenance.digests import MARKERS, tree_digest
from forceuq.provenance.findings import Finding, Kind
from forceuq.provenance.ledger import read_ledger
from forceuq.provenance.places import KEPT, LEDGER, MADE, RECORDS, SUPERSEDED, Folder, read_made, relative
from forceuq.provenance.schema import Artefact, Record, read_record

# What a run's folder holds beside results: nothing there is a number that anyone reads.
BOOKKEEPING = frozenset({"logs", "benchmarks", "checkpoints", RECORDS})


def expected_files(chain: Chain) -> dict[str, list[tuple[str, int, str]]]:
    """Return path -> (SHA-256, size, record) of every file that the records tell of, once for each that does."""
    expected: dict[str, list[tuple[str, int, str]]] = {}
    for path, record in chain.records.items():
        inputs = [artefact for artefact in record.inputs if artefact.record is None]
        for artefact in (*inputs, *record.outputs):
            if artefact.directory:
                for file in artefact.files or ():
                    expected.setdefault(f"{artefact.path}/{file.path}", []).append((file.sha256, file.size, path))
            else:
                expected.setdefault(artefact.path, []).append((artefact.sha256, artefact.size, path))
    return expected


def size_of(file: Path) -> int | None:
    """Return the size of a file in bytes; None: there is none."""
    try:
        return file.stat().st_size if file.is_file() else None
    except OSError:  # a name that no file can have, from a damaged record
        return None


def files(chain: Chain, found: Mapping[Path, str | OSError]) -> Iterator[Finding]:
    """Check that every file is as the records tell; ``found`` has the digests of those whose size is right."""
    try:
        named = {*read_ledger(chain.results, chain.run).records, chain.makers.get(f"{chain.run}/{LEDGER}")}
    except DataError:
        named = set(chain.records)
    for name, told in expected_files(chain).items():
        file = chain.results / name
        there = size_of(file)
        is_as_named = any((found.get(file), there) == (sha256, size) and path in named for sha256, size, path in told)
        for sha256, size, record in told:
            if is_as_named and record not in named:
                continue  # left from another configuration, as ``ledger`` says: another job made this file since
            if there is None:
                yield Finding(Kind.MISSING, name, f"SHA-256 {sha256}, {size} bytes expected", record)
            elif there != size:
                yield Finding(Kind.ALTERED, name, f"has {there} bytes, {size} expected", record)
            elif (digest := found[file]) != sha256:
                yield Finding(Kind.ALTERED, name, f"has SHA-256 {digest}, {sha256} expected", record)


def links(chain: Chain) -> Iterator[Finding]:
    """Check that each job took what the job before it made, and that the record of that is the one it saw."""
    for path, record in chain.records.items():
        for output in record.outputs:
            if output.directory and output.sha256 != _tree(output):
                yield Finding(
                    Kind.ALTERED, path, f"the record's digest of {output.path} is not that of its files", path
                )
        for artefact in record.inputs:
            yield from _link(chain, path, artefact)


def _tree(artefact: Artefact) -> str:
    return tree_digest({file.path: (file.sha256, file.size) for file in artefact.files or ()})


def _link(chain: Chain, path: str, artefact: Artefact) -> Iterator[Finding]:
    reference = artefact.record
    other = f"the record's input {artefact.path} is not what the job before it made"
    if reference is None:
        if not artefact.path.startswith("/"):
            yield Finding(Kind.UNACCOUNTED, artefact.path, "was taken by a job, and no record tells what made it", path)
        return
    present = chain.records.get(reference.path)
    if present is not None and present.digest == reference.digest:
        if _output(present, artefact.path) != artefact.sha256:
            yield Finding(Kind.ALTERED, path, other, path)
        return
    older = chain.older.get(reference.digest)
    if older is None:
        if present is None:
            yield Finding(Kind.MISSING, reference.path, f"record with digest {reference.digest} expected", path)
        else:
            yield Finding(
                Kind.ALTERED,
                reference.path,
                f"the record has digest {present.digest}, and a job that took {artefact.path} saw {reference.digest}",
                reference.path,
            )
        return
    if _output(older, artefact.path) != artefact.sha256:
        yield Finding(Kind.ALTERED, path, other, path)
    elif present is None:
        yield Finding(Kind.MISSING, reference.path, "the record of a job that ran again is expected", path)
    elif (now := _output(present, artefact.path)) != artefact.sha256:
        detail = f"was made from SHA-256 {artefact.sha256}; it was made again since, and is {now}"
        yield Finding(Kind.REMADE, artefact.path, detail, path)


def _output(record: Record, path: str) -> str | None:
    return next((output.sha256 for output in record.outputs if output.path == path), None)


def kept_files(chain: Chain) -> dict[Path, tuple[str, str | None]]:
    """Return file -> (SHA-256, record) of what is kept beside the records, needed or not."""
    wanted: dict[Path, tuple[str, str | None]] = {
        file: (file.name, None) for file in (Folder(chain.results, chain.run).records / KEPT).glob("*")
    }
    for path, record in chain.records.items():
        folder = Folder(chain.results, record.run).records / KEPT
        for digest in (*record.code.modules.values(), record.git.diff, record.software.packages):
            if digest is not None:
                wanted[folder / digest] = (digest, path)
    return wanted


def kept(chain: Chain, found: Mapping[Path, str | OSError]) -> Iterator[Finding]:
    """Check the sources, differences and package lists that the records name."""
    for file, (wanted, record) in kept_files(chain).items():
        name = relative(file, chain.results)  # of a damaged record it may lie anywhere
        digest = found[file]
        if isinstance(digest, FileNotFoundError):
            yield Finding(Kind.MISSING, name, "a record names it", record)
        elif digest != wanted:
            yield Finding(Kind.ALTERED, name, f"has SHA-256 {digest}", record)


def notes(chain: Chain) -> Iterator[Finding]:
    """Check the notes that lead from an output to its record."""
    for output, path in chain.makers.items():
        folder, _, rest = output.partition("/")
        name = f"{folder}/{RECORDS}/{MADE}/{rest}.json"
        try:
            made = read_made(chain.results, output)
        except DataError as error:
            yield Finding(Kind.ALTERED, name, str(error).removeprefix(f"{chain.results / name}: "), path)
            continue
        if made is None:
            yield Finding(Kind.MISSING, name, f"leads from {output} to its record", path)
        elif f"{folder}/{RECORDS}/{made.record}" != path:
            yield Finding(Kind.ALTERED, name, f"leads to {made.record}", path)


def older(chain: Chain) -> Iterator[Finding]:
    """Check all of the run's older records, whether a present one names them or not."""
    folder = Folder(chain.results, chain.run).records / SUPERSEDED
    for file in sorted(folder.glob("*")):
        name = file.relative_to(chain.results).as_posix()
        try:
            digest = read_record(file).digest
        except DataError as error:
            yield Finding(Kind.ALTERED, name, f"the older record {str(error).removeprefix(f'{file}: ')}")
            continue
        if file.name != f"{digest}.json":
            yield Finding(Kind.ALTERED, name, f"the older record has digest {digest}")


def accounted(chain: Chain) -> Iterator[Finding]:
    """Find files that no record tells of: in the run's folder, and in those of the caches that it used."""
    expected = set(expected_files(chain))
    known = expected | set(chain.records)
    # Folders that may lie elsewhere behind a link. Any other link to a folder is not looked through: it is itself more
    # than what the records tell of, and may lead anywhere.
    above = {parent.as_posix() for name in known for parent in PurePosixPath(name).parents}
    run = Folder(chain.results, chain.run)
    for top in _listed(run.path):
        if top.name in BOOKKEEPING - {RECORDS}:
            continue
        for file in _below(top, chain.results, above):
            name = file.relative_to(chain.results).as_posix()
            if name in known or file.name in MARKERS:
                continue
            if top.name != RECORDS:
                yield Finding(Kind.UNACCOUNTED, name, "no record tells what made it")
            elif file.relative_to(top).parts[:1] not in ((MADE,), (KEPT,), (SUPERSEDED,)):
                yield Finding(Kind.UNACCOUNTED, name, "is no record that can be read")
    for file in _in_caches(chain, above):
        name = file.relative_to(chain.results).as_posix()
        # What has a note of its own is another run's.
        if name not in expected and file.name not in MARKERS and not _noted(chain.results, name):
            yield Finding(Kind.UNACCOUNTED, name, "no record tells what made it")


def _in_caches(chain: Chain, above: Set[str]) -> list[Path]:
    """Return what lies in directories that jobs of the caches made, and beside the files that they made."""
    found: set[Path] = set()
    for output in chain.makers:
        path = chain.results / output
        if output.startswith((f"{chain.run}/", "/")) or ".." in path.parts:  # the latter of a damaged record
            continue
        if _is_folder(path):
            found.update(_below(path, chain.results, above))
        else:  # folders beside it are other outputs, of this run or another
            found.update(file for file in _listed(path.parent) if file.is_symlink() or not file.is_dir())
    return sorted(file for file in found if file.relative_to(chain.results).as_posix() not in above)


def _below(path: Path, results: Path, above: Set[str]) -> Iterator[Path]:
    """Yield a file, or a directory's files and those links to other directories that need not be there."""
    if path.is_dir() and (not path.is_symlink() or path.relative_to(results).as_posix() in above):
        for inside in _listed(path):
            yield from _below(inside, results, above)
    else:
        yield path


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that no file can have, from a damaged record
        return False


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # a damaged record may tell of folders that are not there
        return []


def _noted(results: Path, name: str) -> bool:
    try:
        return read_made(results, name) is not None
    except DataError:
        return False


def trees(chain: Chain) -> Iterator[Finding]:
    """Find what was made from a tree with changes that no commit has."""
    for path, record in chain.records.items():
        if record.git.dirty:
            yield Finding(
                Kind.DIRTY, path, f"commit {record.git.commit} with changes {record.git.diff} ({RECORDS}/{KEPT})", path
            )


def configuration(chain: Chain, planned: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Compare what each job was given with what today's configuration gives it.

    Args:
        chain: the records.
        planned: record -> params of every job that today's configuration has.
    """
    for path, record in chain.records.items():
        params = planned.get(path)
        if params is None:
            if record.run == chain.run:
                yield Finding(Kind.CONFIGURATION, path, "today's configuration has no such job", path)
            continue
        changed = sorted(
            f"{key}: {_short(record.params.get(key))}, now {_short(params.get(key))}"
            # The bytes of a source are told by the name of its folder; another mirror or licence is none of the job's.
            for key in {*record.params, *params} - {"code", "source"}
            if record.params.get(key) != params.get(key)
        )
        if changed:
            yield Finding(Kind.CONFIGURATION, path, "; ".join(changed), path)


def _short(value: Any, longest: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def ledger(chain: Chain, root: str | None) -> Iterator[Finding]:
    """Check that the records are those that the run's ledger names, and the ledger the one with a known root."""
    name = f"{chain.run}/{LEDGER}"
    if not (chain.results / name).exists():
        yield Finding(Kind.MISSING, name, "the run has not finished: run the workflow")
        return
    try:
        found = read_ledger(chain.results, chain.run)
    except DataError as error:
        yield Finding(Kind.ALTERED, name, str(error).removeprefix(f"{chain.results / name}: "))
        return
    if root is not None and found.root != root:
        yield Finding(Kind.ALTERED, name, f"has root {found.root}, {root} expected")
    for path, digest in found.records.items():
        present = chain.records.get(path)
        if present is None:
            yield Finding(Kind.MISSING, path, f"the ledger names the record, with digest {digest}", path)
        elif present.digest != digest:
            yield from _ran_again(present, older_record(chain, path, digest), path, digest, root)
    for path, record in chain.records.items():
        # The ledger cannot name the record of its own job. That may tell of nothing else, or anything could hide there.
        is_own = [output.path for output in record.outputs] == [name]
        if record.run == chain.run and path not in found.records and not is_own:
            detail = "the ledger does not name it: it is left from another configuration of this run"
            yield Finding(Kind.CONFIGURATION, path, detail, path)


def _ran_again(present: Record, older: Record | None, path: str, digest: str, root: str | None) -> Iterator[Finding]:
    """Say what it means that a record is not the one that the ledger names, with that digest."""
    if older is None:
        yield Finding(Kind.ALTERED, path, f"the record has digest {present.digest}, the ledger {digest}", path)
    elif root is not None:
        # Anyone can set the true record aside and write another: what was published covers that one alone.
        detail = f"the root covers the job's record with digest {digest}; there is a later one, with {present.digest}"
        yield Finding(Kind.ALTERED, path, detail, path)
    elif {(o.path, o.sha256) for o in present.outputs} != {(o.path, o.sha256) for o in older.outputs}:
        detail = "its job ran again since the ledger was written, and made something else; run the workflow to its end"
        yield Finding(Kind.REMADE, path, detail, path)
