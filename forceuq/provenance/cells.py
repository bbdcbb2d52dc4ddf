"""Addresses of table cells, and the jobs that a single cell follows from."""

import csv
import io
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from forceuq.configuration.benchmark import nearest
from forceuq.errors import DataError
from forceuq.provenance.chain import Chain, Selection
from forceuq.provenance.digests import bytes_digest
from forceuq.provenance.schema import Artefact, Record
from forceuq.tables import CALIBRATION_LABELS, TABLE2_METRICS

Row = dict[str, str]
Names = tuple[str, ...]
"""What a row or column may be called; the first is how it is shown."""
Finder = Callable[[Chain, str, list[Row]], Iterator["Cell"]]
"""The cells of a table: of (the records, that of the table's job, the table's rows)."""
Parts = Callable[[Record], Iterator[tuple[str, str, list[str]]]]
"""(data set, method, folders) of the fits that a table of costs is of."""


@dataclass(frozen=True)
class Cell:
    """A number in a table.

    Args:
        table: the table's name: that of its file.
        record: of the job that wrote the table.
        row: what its row may be called, part by part.
        column: what its column may be called.
        value: as the CSV file has it, with its standard deviation and count where there are such.
        only: which of the inputs of the jobs before it it follows from.
    """

    table: str
    record: str
    row: tuple[Names, ...]
    column: Names
    value: str
    only: Selection = field(hash=False)

    @property
    def address(self) -> str:
        """How it is asked for: ``table2:split,method,calibration,metric``."""
        return f"{self.table}:{','.join([*(names[0] for names in self.row), self.column[0]])}"


def addressed_tables(chain: Chain) -> Iterator[tuple[str, Artefact]]:
    """Yield (record, output) of each table of the run whose cells have addresses."""
    for path, record in chain.records.items():
        for output in record.outputs:
            if record.run == chain.run and output.path.endswith(".csv") and _name(output) in _TABLES:
                yield path, output


def cells_of(
    chain: Chain, path: str, table: Artefact, found: Mapping[Path, str | OSError] = MappingProxyType({})
) -> list[Cell]:
    """Return the cells of a table that is as its job wrote it.

    Args:
        chain: the records.
        path: record of the table's job.
        table: its output.
        found: SHA-256 of files that were hashed already, or why they cannot be read.

    Raises:
        DataError: the table is another, cannot be read, or its record does not fit it: no cell of it can be told.
    """
    file = chain.results / table.path
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error}); 'forceuq audit' says more", file=file) from error
    if (digest := found.get(file) or bytes_digest(content)) != table.sha256:
        raise DataError(
            f"is not as its job wrote it: SHA-256 {digest}, not {table.sha256}; 'forceuq audit' says more", file=file
        )
    try:
        cells = list(_TABLES[_name(table)](chain, path, _rows(content)))
        for cell in cells:
            for name in itertools.chain(*cell.row, cell.column):
                _normalised(name)
    # Rows and params lead on unchecked: only jobs write them. Of an edited record they may hold anything.
    except (LookupError, TypeError, ValueError, AttributeError, csv.Error) as error:
        raise DataError(
            f"has no cells that its record ({path}) tells of ({error!r}); 'forceuq audit' says more", file=file
        ) from error
    return cells


def _name(table: Artefact) -> str:
    return Path(table.path).stem


def find_cells(chain: Chain, address: str) -> list[Cell]:
    """Return the cells of an address ``table:part,part,...,column``.

    Parts are labels or the configuration's names; case and spaces do not count. An address may mean several cells:
    all calibrations where none is given, and of labels like "BLL, nlml" all that begin with "BLL" where that is given.

    Raises:
        DataError: an unknown table or cell, with the nearest that there are; a table that is not as its job wrote it.
    """
    table, _, wanted = address.partition(":")
    faults: dict[str, DataError] = {}
    cells: dict[str, list[Cell]] = {}
    short: dict[str, list[Cell]] = {}
    shown: dict[str, list[str]] = {}
    for path, output in addressed_tables(chain):
        try:
            of_table = cells_of(chain, path, output)
        except DataError as error:
            faults[_name(output)] = error  # of no matter to the other tables
            continue
        for cell in of_table:
            shown.setdefault(cell.table, []).append(cell.address)
            if cell.table == table:
                for name in _spellings([*cell.row, cell.column]):
                    cells.setdefault(name, []).append(cell)
                for name in _spellings([*((names[0].split(",")[0],) for names in cell.row), cell.column]):
                    short.setdefault(name, []).append(cell)
    if table not in shown:
        if table in faults:
            raise faults[table]
        raise DataError(f"the run '{chain.run}' has no table '{table}' with addresses; {nearest(table, shown)}")
    found = cells.get(_normalised(wanted)) or short.get(_normalised(wanted))
    if found is None:
        near = nearest(address, shown[table])
        example = near if near.startswith("did you") else f"addresses are like '{shown[table][0]}'"
        raise DataError(f"there is no cell '{address}'; {example}")
    return list(dict.fromkeys(found))


def _spellings(parts: Sequence[Names]) -> Iterator[str]:
    for names in itertools.product(*parts):
        yield _normalised(",".join(names))
    if len(parts) > 3:  # the last part of the row, the calibration, left out
        for names in itertools.product(*parts[:2], parts[-1]):
            yield _normalised(",".join(names))


def _normalised(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"\s*,\s*", ",", text.strip().lower()))


def _rows(content: bytes) -> list[Row]:
    rows = list(csv.DictReader(io.StringIO(content.decode(), newline=""), strict=True))
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise ValueError(f"row {number} is not as long as the header")
    return rows


def _named(labels: dict[str, str], shown: str) -> Iterator[str]:
    """Yield the names under which a label is in the configuration."""
    return (name for name, label in labels.items() if label == shown)


def _table2(chain: Chain, path: str, rows: list[Row]) -> Iterator[Cell]:
    record = chain.records[path]
    splits = {label: (dataset, split) for dataset, split, label in record.params["splits"]}
    # The job that merges the metrics of all fits, and what each of those is of.
    merged = [(artefact.path, maker) for artefact, maker in chain.made_from(path) if artefact.name == "metrics"]
    for row in rows:
        if row.get("source") != "this run" or row.get("split") not in splits:
            continue  # the paper's own numbers were typed in from it
        dataset, split = splits[row["split"]]
        method = next(_named(record.params["methods"], row["method"]), "")
        only: dict[str, frozenset[str]] = {path: frozenset(name for name, _ in merged)}
        for _, maker in merged:
            if maker is not None:
                only[maker] = frozenset(_metrics_of(chain, maker, dataset, method, split))
        kind = next(_named(CALIBRATION_LABELS, row["calibration"]), row["calibration"])
        names = ((row["split"],), (row["method"], method), (row["calibration"], kind))
        for metric in TABLE2_METRICS:
            label = {"mae": "MAE", "ece": "ECE", "nll": "NLL"}.get(metric, metric.capitalize())
            mean, std, n = (row.get(f"{metric}_{suffix}", "") for suffix in ("mean", "std", "n"))
            value = f"{mean or 'undefined'}{f' ± {std}' if std else ''}{f', n = {n}' if n else ''}"
            yield Cell("table2", path, names, (label, metric), value, only)


def _metrics_of(chain: Chain, merge: str, dataset: str, method: str, split: str) -> Iterator[str]:
    edited = {finding.record for finding in chain.findings}
    for artefact, maker in chain.made_from(merge):
        if artefact.name != "metrics" or maker is None:
            continue
        measured = chain.records[maker]
        of, splits = measured.wildcards, measured.params.get("splits")
        mine = (of.get("dataset"), of.get("method")) == (dataset, method)
        # What an edited record says it is of may be part of the edit: any cell may follow from it.
        if maker in edited or (mine and (not isinstance(splits, list) or split in splits)):
            yield artefact.path


def _costs(table: str, parts: Parts) -> Finder:
    def cells(chain: Chain, path: str, rows: list[Row]) -> Iterator[Cell]:
        record = chain.records[path]
        inputs = {artefact.path for artefact in record.inputs}
        groups: dict[tuple[str, str], set[str]] = {}
        for dataset, method, places in parts(record):
            found = (tail for place in places for tail in _tails(place) if tail in inputs)
            groups.setdefault((dataset, method), set()).update(found)
        methods, datasets = record.params["methods"], record.params["datasets"]
        for row in rows:
            key = row["dataset"], row["method"]
            only = {path: frozenset(groups.get(key, ()))}
            names = ((datasets.get(key[0], key[0]), key[0]), (methods.get(key[1], key[1]), key[1]))
            for column, value in row.items():
                if column not in ("dataset", "method"):
                    yield Cell(table, path, names, (column,), value or "undefined", only)

    return cells


def _tails(place: str) -> Iterator[str]:
    """Yield a path without its first folders: params name the results folder too, records do not."""
    parts = place.split("/")
    return ("/".join(parts[i:]) for i in range(len(parts)))


def _instances(record: Record) -> Iterator[tuple[str, str, list[str]]]:
    for instance in record.params["instances"]:
        for member in instance["members"]:
            places = [*member["fits"], member["predictions"], *member["trained_on"], *member["predicted"]]
            yield instance["dataset"], instance["method"], places


def _fits(record: Record) -> Iterator[tuple[str, str, list[str]]]:
    for fit in record.params["fits"]:
        method, dataset, *_ = fit.split("/")
        yield dataset, method, [f"{record.run}/fits/{fit}"]


# Table -> its cells. A table that is not here is traced as a whole.
_TABLES: dict[str, Finder] = {
    "table1": _costs("table1", _instances),
    "table2": _table2,
    "costs": _costs("costs", _fits),
}
