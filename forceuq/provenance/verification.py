"""An archive of a run checked anywhere, without the data that the run was made from."""

import json
import lzma
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from forceuq.errors import DataError
from forceuq.files import file_digest
from forceuq.provenance.archive import (
    CONFIGURATION,
    LOCKS,
    METADATA,
    RESULTS,
    WORKFLOW,
    files_of_artefact,
    locks_of,
    scripts_of,
)
from forceuq.provenance.chain import Chain, load_chain
from forceuq.provenance.ledger import Ledger, read_ledger
from forceuq.provenance.places import KEPT, LEDGER, RECORDS
from forceuq.provenance.schema import Record

# What reading a damaged archive, or metadata of another form, may raise.
_UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
)


@dataclass
class Verification:
    """What was found out about an archive.

    ``faults`` are what is wrong; ``absent`` counts files that the records tell of and that are not in the archive;
    ``uncovered`` are files that no record tells of, which are held to the metadata alone and not to the root.
    """

    run: str = ""
    root: str = ""
    files: int = 0
    jobs: int = 0
    absent: int = 0
    uncovered: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return dict(self.__dict__)


def verify_bundle(archive: Path, root: str | None = None) -> Verification:
    """Check an archive against itself: every file, record, chain and the ledger.

    Whoever edits a file and everything that tells of it gets another root digest; give the one that was published
    to find that too. The metadata, and of the workflow's definition what is no job's script, have no record.

    Args:
        archive: what ``write_bundle`` wrote.
        root: the root digest that it must have.

    Raises:
        DataError: it is no such archive.
    """
    verification = Verification()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            with zipfile.ZipFile(archive) as opened:
                names = opened.namelist()
                for name in names:
                    if name.startswith("/") or ".." in PurePosixPath(name).parts or not PurePosixPath(name).parts:
                        raise DataError("has a file that would be written outside of it", file=archive, record=name)
                opened.extractall(folder)
            metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
            described = {entity["@id"]: (_is_file(entity), entity.get("sha256")) for entity in metadata["@graph"]}
        except _UNREADABLE as error:
            raise DataError(f"no archive of a run, or damaged ({error}); fetch it again", file=archive) from error
        _files(verification, folder, [name for name in names if not name.endswith("/")], described)
        runs = [path.parent.name for path in folder.glob(f"{RESULTS}/*/{LEDGER}")]
        if len(runs) != 1:
            raise DataError(f"holds the ledgers of {len(runs)} runs, not of one", file=archive)
        verification.run = runs[0]
        try:
            ledger = read_ledger(folder / RESULTS, runs[0])
            chain = load_chain(folder / RESULTS, runs[0])
        except DataError as error:
            verification.faults.append(str(error).replace(f"{folder}/", ""))
            return verification
        verification.root, verification.jobs = ledger.root, len(ledger.records)
        if root not in (None, ledger.root):
            verification.faults.append(f"the root digest is {ledger.root}, not {root}")
        _configuration(verification, folder, ledger)
        try:
            _records(verification, chain, ledger)
            _outputs(verification, folder, chain)
            _workflow(verification, folder, chain, ledger)
        except (OSError, ValueError) as error:
            said = str(error).replace(f"{folder}/", "")
            verification.faults.append(f"a record tells of a file that there cannot be ({said})")
    return verification


def _files(verification: Verification, folder: Path, names: list[str], described: dict[str, tuple[bool, Any]]) -> None:
    """Hold each file to the archive's metadata."""
    verification.files = len(names)
    # Of two, other programs may read the one that was not checked.
    places = Counter(PurePosixPath(name).as_posix() for name in names)
    verification.faults += [f"{place}: {n} files have this name" for place, n in places.items() if n > 1]
    for name in names:
        if name.partition("/")[0] not in (CONFIGURATION, METADATA, RESULTS, WORKFLOW, LOCKS):
            verification.faults.append(f"{name}: belongs to no part of an archive of a run")
        if name == METADATA:
            continue
        _, sha256 = described.get(name, (False, None))
        if sha256 is None:
            verification.faults.append(f"{name}: not in the metadata")
        elif file_digest(folder / name) != sha256:
            verification.faults.append(f"{name}: its SHA-256 is not the one in the metadata")
    present = set(names)
    for name, (is_file, _) in described.items():
        if is_file and name not in present:
            verification.faults.append(f"{name}: missing")


def _is_file(entity: dict[str, Any]) -> bool:
    kinds = entity.get("@type", [])
    return "File" in ([kinds] if isinstance(kinds, str) else kinds)


def _records(verification: Verification, chain: Chain, ledger: Ledger) -> None:
    """Hold each record to its own digest, to the ledger, and to the records that name it."""
    verification.faults += [f"{RESULTS}/{finding.path}: {finding.detail}" for finding in chain.findings]
    for path, digest in ledger.records.items():
        record = chain.records.get(path)
        if record is None:
            verification.faults.append(f"{RESULTS}/{path}: missing, and the ledger names it")
        elif record.digest != digest:
            verification.faults.append(f"{RESULTS}/{path}: not the record that the ledger names")
    own = [path for path, record in chain.records.items() if _makes_ledger_alone(record)]
    for path in sorted(chain.records.keys() - ledger.records.keys() - set(own[:1])):
        verification.faults.append(f"{RESULTS}/{path}: the ledger does not name it: it was added")
    for path, record in chain.records.items():
        for artefact in record.inputs:
            reference = artefact.record
            if reference is None or reference.path == path:
                continue
            maker = chain.records.get(reference.path)
            if maker is None or maker.digest != reference.digest:
                verification.faults.append(
                    f"{RESULTS}/{path}: its input {artefact.path} comes from a job whose record is not here"
                )
            elif artefact.sha256 not in {output.sha256 for output in maker.outputs if output.path == artefact.path}:
                verification.faults.append(f"{RESULTS}/{path}: its input {artefact.path} is not what was made")


def _makes_ledger_alone(record: Record) -> bool:
    # The ledger cannot name this record. If it could tell of more, anything could be added by it.
    return [output.path for output in record.outputs] == [f"{record.run}/{LEDGER}"]


def _outputs(verification: Verification, folder: Path, chain: Chain) -> None:
    """Hold the results that are here to their records, and the kept sources to their digests."""
    told = set(chain.records)
    for record in chain.records.values():
        for output in record.outputs:
            for name, sha256 in files_of_artefact(output).items():
                file = folder / RESULTS / name
                told.add(name)
                if not file.exists():
                    verification.absent += 1
                elif not file.is_file() or file_digest(file) != sha256:
                    verification.faults.append(f"{RESULTS}/{name}: not what its record says")
        for digest in (*record.code.modules.values(), record.software.packages, record.git.diff):
            if digest is not None:
                name = f"{record.run}/{RECORDS}/{KEPT}/{digest}"
                told.add(name)
                _kept(verification, folder, name, digest)
    for file in sorted((folder / RESULTS).rglob("*")):
        name = file.relative_to(folder / RESULTS).as_posix()
        if file.is_file() and name not in told:
            verification.faults.append(f"{RESULTS}/{name}: no record tells of it")


def _workflow(verification: Verification, folder: Path, chain: Chain, ledger: Ledger) -> None:
    """Hold scripts and lock file to the records; what no record tells of is said to be uncovered."""
    records = [record for path, record in chain.records.items() if path in ledger.records]
    scripts, locks = scripts_of(records), locks_of(records)
    files = [file for part in (WORKFLOW, LOCKS) for file in sorted((folder / part).rglob("*")) if file.is_file()]
    for place in (file.relative_to(folder).as_posix() for file in files):
        part, _, name = place.partition("/")
        if part == WORKFLOW and name not in scripts:
            verification.uncovered.append(place)
        elif part == WORKFLOW and file_digest(folder / place) not in scripts[name]:
            verification.faults.append(f"{place}: not the script that the jobs of the run ran")
        elif part == LOCKS and (name not in locks or file_digest(folder / place) not in locks[name]):
            verification.faults.append(f"{place}: not a lock file that the jobs of the run found")


def _kept(verification: Verification, folder: Path, name: str, digest: str) -> None:
    file = folder / RESULTS / name
    fault = f"{RESULTS}/{name}: missing or changed"
    if (not file.exists() or file_digest(file) != digest) and fault not in verification.faults:
        verification.faults.append(fault)


def _configuration(verification: Verification, folder: Path, ledger: Ledger) -> None:
    try:
        found = yaml.safe_load((folder / CONFIGURATION).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        verification.faults.append(f"{CONFIGURATION}: cannot be read ({error})")
        return
    if found != ledger.configuration:
        verification.faults.append(f"{CONFIGURATION}: not the configuration that the ledger holds")
