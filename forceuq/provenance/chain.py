"""The records of a run and of the caches that it used, joined to a graph."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import orjson
from pydantic import ValidationError

from forceuq.errors import DataError
from forceuq.provenance.findings import Finding, Kind
from forceuq.provenance.places import LEDGER, SUPERSEDED, Folder
from forceuq.provenance.schema import Artefact, Record, read_record

Selection = Mapping[str, frozenset[str]]
"""Record -> paths of those of its job's inputs that count."""


@dataclass
class Chain:
    """The records that a run's results follow from.

    Args:
        results: the folder of all results.
        run: name of the run's folder.
        records: present records by path, relative to the results folder; edited ones too, where they can be read.
        older: records of jobs that ran again since, as far as others name them, by digest.
        makers: path of an output -> path of the present record that tells of it.
        findings: what is wrong with the records themselves.
    """

    results: Path
    run: str
    records: dict[str, Record] = field(default_factory=dict)
    older: dict[str, Record] = field(default_factory=dict)
    makers: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def made_from(self, path: str, only: Selection = MappingProxyType({})) -> Iterator[tuple[Artefact, str | None]]:
        """Yield a job's inputs, each with the record of the job that made it; None: nothing that is known.

        Args:
            path: the job's record.
            only: record -> paths of the inputs that count; of records that are not in it all inputs do.
        """
        for artefact in self.records[path].inputs:
            if path in only and artefact.path not in only[path]:
                continue
            maker = artefact.record.path if artefact.record is not None else self.makers.get(artefact.path)
            yield artefact, maker if maker in self.records else None

    def lineage(self, starts: Iterable[str], only: Selection = MappingProxyType({})) -> set[str]:
        """Return the records that some records follow from, themselves included; ``only`` as of ``made_from``."""
        found: set[str] = set()
        waiting = list(starts)
        while waiting:
            path = waiting.pop()
            if path in found or path not in self.records:
                continue
            found.add(path)
            waiting.extend(maker for _, maker in self.made_from(path, only) if maker is not None)
        return found

    def finals(self) -> dict[str, str]:
        """Return the run's results that no job but its ledger's has taken further, with their records."""
        ledger = f"{self.run}/{LEDGER}"
        taken = {
            artefact.path
            for record in self.records.values()
            if ledger not in {output.path for output in record.outputs}
            for artefact in record.inputs
        }
        return {
            output.path: path
            for path, record in sorted(self.records.items())
            if record.run == self.run
            for output in record.outputs
            if output.path not in taken
        }


def load_chain(results: Path, run: str) -> Chain:
    """Read a run's records and those that they name.

    A record that was edited is a finding, and is used as it stands, so that what it says is checked too.

    Raises:
        DataError: the run has no records.
    """
    chain = Chain(results, run)
    waiting = [path.relative_to(results).as_posix() for path in Folder(results, run).record_paths()]
    if not waiting:
        raise DataError("has no records: nothing was run there, or by a version without them", file=results / run)
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        record = _load(chain, path)
        if record is None:
            continue
        chain.records[path] = record
        for output in record.outputs:
            chain.makers[output.path] = path
        for artefact in record.inputs:
            reference = artefact.record
            if reference is not None and reference.path not in seen:
                seen.add(reference.path)
                if _exists(results / reference.path):
                    waiting.append(reference.path)
    _load_older(chain)
    return chain


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except OSError:  # a name that is too long, from a damaged record
        return False


def _load(chain: Chain, path: str) -> Record | None:
    file = chain.results / path
    try:
        return read_record(file)
    except DataError as error:
        detail = str(error).removeprefix(f"{file}: ")
        chain.findings.append(Finding(Kind.ALTERED, path, f"the record {detail}", path))
    try:
        return Record.model_validate(orjson.loads(file.read_bytes()))
    except (OSError, ValueError, ValidationError):
        return None


def older_record(chain: Chain, path: str, digest: str) -> Record | None:
    """Return the record that a job had before it ran again, held to its digest; None: there is none that is whole.

    Args:
        chain: the records.
        path: where the job's present record lies.
        digest: of the older one.
    """
    if digest in chain.older:
        return chain.older[digest]
    try:
        record = read_record(Folder(chain.results, path.partition("/")[0]).records / SUPERSEDED / f"{digest}.json")
    except DataError:
        return None
    return record if record.digest == digest else None


def _load_older(chain: Chain) -> None:
    """Read the older records that present ones, or older ones in turn, name."""
    waiting = [artefact.record for record in chain.records.values() for artefact in record.inputs]
    while waiting:
        reference = waiting.pop()
        if reference is None or reference.digest in chain.older:
            continue
        present = chain.records.get(reference.path)
        if present is not None and present.digest == reference.digest:
            continue
        folder = Folder(chain.results, reference.path.partition("/")[0])
        file = folder.records / SUPERSEDED / f"{reference.digest}.json"
        if not _exists(file):
            continue
        try:
            record = read_record(file)
        except DataError as error:
            path = file.relative_to(chain.results).as_posix()
            detail = str(error).removeprefix(f"{file}: ")
            chain.findings.append(Finding(Kind.ALTERED, path, f"the older record {detail}", reference.path))
            continue
        if record.digest == reference.digest:
            chain.older[reference.digest] = record
            waiting.extend(artefact.record for artefact in record.inputs)
