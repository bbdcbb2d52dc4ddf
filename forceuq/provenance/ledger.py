"""A run's ledger: the digest of every record that its results follow from, and one root digest over them all."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from forceuq.errors import DataError
from forceuq.provenance.chain import Chain, load_chain, older_record
from forceuq.provenance.places import LEDGER, Folder, folder_of_log, relative
from forceuq.provenance.schema import Record, read_sealed, write_sealed

SCHEMA = "forceuq.ledger"
VERSION = 1


@dataclass(frozen=True)
class Ledger:
    """What a run's final job wrote down.

    Args:
        root: digest over everything else: whoever knows it can tell whether any record, and through the records any
            file, is another than it was.
        configuration: of the run, every value.
        records: path relative to the results folder -> digest, of each record.
    """

    root: str
    configuration: dict[str, Any]
    records: dict[str, str]


def write_ledger(log: Path, rule: str, targets: Iterable[Path], configuration: Mapping[str, Any], output: Path) -> None:
    """Write the ledger of a run whose results are all there.

    Args:
        log: of the job that does this; it tells which run it is.
        rule: of that job.
        targets: the run's results.
        configuration: of the run, as plain values.
        output: where.

    Raises:
        DataError: a result without a record, a record that was edited, or one that is not there.
    """
    folder, _ = folder_of_log(log, rule)
    chain = load_chain(folder.results, folder.name)
    names = [relative(path, folder.results) for path in targets]
    for name in names:
        if name not in chain.makers:
            raise DataError("has no record of the job that made it; remove it, to make it again", file=name)
    lineage = chain.lineage(chain.makers[name] for name in names)
    edited = [finding for finding in chain.findings if finding.record in lineage]
    if edited:
        raise DataError(f"{edited[0].detail}; remove what its job made, to make it again", file=edited[0].path)
    for path in lineage:
        for artefact in chain.records[path].inputs:
            reference = artefact.record
            if reference is not None and reference.path not in chain.records:
                raise DataError("is missing; remove what its job made, to make it again", file=reference.path)
    write_sealed(
        output,
        {
            "schema": SCHEMA,
            "version": VERSION,
            "run": folder.name,
            # As text: the order of its keys is that of tables and figures, and JSON here is sorted.
            "configuration": yaml.safe_dump(dict(configuration), sort_keys=False, allow_unicode=True),
            "records": {path: chain.records[path].digest for path in sorted(lineage)},
        },
    )


def read_ledger(results: Path, run: str) -> Ledger:
    """Read a run's ledger.

    Raises:
        DataError: it is missing (the run has not finished), damaged or edited.
    """
    path = Folder(results, run).path / LEDGER
    if not path.is_file():
        raise DataError("is not there: no run of this name has been run to its end here", file=path)
    values = read_sealed(path)
    if (values.get("schema"), values.get("version")) != (SCHEMA, VERSION):
        raise DataError(f"is no ledger that this code reads ({SCHEMA} {VERSION})", file=path)
    remedy = "remove it and run the workflow to its end"
    try:
        configuration = yaml.safe_load(values["configuration"])
    except (KeyError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise DataError(f"holds no configuration that can be read ({error!r}); {remedy}", file=path) from error
    records = values.get("records")
    if not isinstance(configuration, dict):
        raise DataError(f"its configuration is no mapping of keys; {remedy}", file=path)
    if not isinstance(records, dict) or not all(isinstance(digest, str) for digest in records.values()):
        raise DataError(f"names no records by their digests; {remedy}", file=path)
    return Ledger(values["digest"], configuration, records)


def named_records(chain: Chain, ledger: Ledger) -> dict[str, Record]:
    """Return the records that a run's ledger names, by their paths, each the very one.

    Of a job that ran again since it is the older one, which was set aside.

    Args:
        chain: the records.
        ledger: of the run.

    Raises:
        DataError: a record is missing, edited or another; or the ledger itself has none.
    """
    if (path := f"{chain.run}/{LEDGER}") not in chain.makers:
        raise DataError("has no record; run the workflow to its end", file=chain.results / path)
    for finding in chain.findings:
        if finding.record in ledger.records:
            raise DataError(f"{finding.detail}; 'forceuq audit' says more", file=chain.results / finding.path)
    named = {}
    for path, digest in ledger.records.items():
        present = chain.records.get(path)
        record = present if present and present.digest == digest else older_record(chain, path, digest)
        if record is None:
            what = (
                "is missing" if present is None else f"has digest {present.digest}, and the run's ledger names {digest}"
            )
            raise DataError(f"{what}; 'forceuq audit' says more", file=chain.results / path)
        named[path] = record
    return named
