"""Structures with reference energies and forces, in one Parquet schema for every data set.

A row is a structure. Writing and reading go a row group at a time, so no step holds a data set in memory.
Units: Å, eV, eV/Å.
"""

import hashlib
import logging
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from forceuq.data.structure_columns import ENCODING, FIELDS, columns_table, structure_columns
from forceuq.data.structure_faults import fault
from forceuq.errors import DataError
from forceuq.files import remove_leftovers, whole_file, write_json
from forceuq.parquet_schema import open_parquet, schema_metadata

if TYPE_CHECKING:
    from ase import Atoms

SCHEMA = "structures"
VERSION = 1
# Structures in a row group, or fewer: it is closed by the one with which it has so many atoms.
ROW_GROUP = 1000
ROW_GROUP_ATOMS = 1_000_000
DEFAULT_MAX_BAD_FRACTION = 0.01
_REPORTED = 1000
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Structure:
    """Atoms with their reference energy and forces.

    Args:
        structure_id: unique within the data set, stable between runs.
        group_id: what may not be split between parts (the material, the molecule).
        numbers: (n,) int32, atomic numbers.
        positions: (n, 3) float64, Å.
        cell: (3, 3) float64, lattice vectors as rows, Å; zeros for none.
        pbc: whether the structure is periodic (along all three vectors).
        energy: total energy, eV; None where it is not known.
        forces: (n, 3) float64, eV/Å.
        energy_above_relaxed: energy per atom above the relaxed structure, eV/atom; None where undefined.
    """

    structure_id: str
    group_id: str
    numbers: NDArray[np.int32]
    positions: NDArray[np.float64]
    cell: NDArray[np.float64]
    pbc: bool
    energy: float | None
    forces: NDArray[np.float64]
    energy_above_relaxed: float | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def atoms(self) -> "Atoms":
        """Return the structure as ASE atoms (no calculator, no labels)."""
        from ase import Atoms

        return Atoms(numbers=self.numbers, positions=self.positions, cell=self.cell if self.pbc else None, pbc=self.pbc)


def structure(
    structure_id: str,
    group_id: str,
    *,
    numbers: ArrayLike,
    positions: ArrayLike,
    forces: ArrayLike,
    cell: ArrayLike | None = None,
    energy: float | None = None,
    energy_above_relaxed: float | None = None,
) -> Structure:
    """Return a structure from anything that numpy takes; periodic if and only if a cell is given.

    Raises:
        ValueError: a value is not a number, or rows differ in length.
    """
    return Structure(
        structure_id=structure_id,
        group_id=group_id,
        numbers=np.asarray(numbers, dtype=np.int32),
        positions=np.asarray(positions, dtype=np.float64),
        cell=np.zeros((3, 3)) if cell is None else np.asarray(cell, dtype=np.float64),
        pbc=cell is not None,
        energy=None if energy is None else float(energy),
        forces=np.asarray(forces, dtype=np.float64),
        energy_above_relaxed=None if energy_above_relaxed is None else float(energy_above_relaxed),
    )


class StructureWriter:
    """Write structures to a Parquet file, leaving out and counting damaged ones.

    A context manager; the file and its sidecar ``<path>.report.json`` appear when the block ends without an
    exception. The report holds ``written``, ``atoms``, ``n_rejected`` and, of the first thousand, the id and
    the reason in ``rejected``, and the ``warnings``. Memory: one row group, and a few dozen bytes a structure to
    find duplicates.

    Args:
        path: the Parquet file.
        max_bad_fraction: above this share of rejected structures, an error and no file.
        metadata: further values for the file's metadata.

    Raises:
        DataError: at the end, where too many structures were rejected or none was written.
    """

    def __init__(
        self,
        path: str | Path,
        max_bad_fraction: float = DEFAULT_MAX_BAD_FRACTION,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.max_bad_fraction = max_bad_fraction
        self.written = 0
        self.atoms = 0
        self.n_rejected = 0
        self._rejected: list[dict[str, str]] = []
        self._reasons: Counter[str] = Counter()
        self._warnings: list[str] = []
        self._schema = FIELDS.with_metadata(schema_metadata(SCHEMA, VERSION, metadata))
        self._rows: list[Structure] = []
        self._row_atoms = 0
        # What is not yet enough for a row group.
        self._tables: list[pa.Table] = []
        self._seen: set[bytes] = set()
        self._stack = ExitStack()
        self._writer: pq.ParquetWriter

    def __enter__(self) -> Self:
        remove_leftovers(self.path)
        temporary = self._stack.enter_context(whole_file(self.path))
        self._writer = self._stack.enter_context(pq.ParquetWriter(temporary, self._schema, **ENCODING))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._collect()
            self._write_groups(last=True)
            self._judge()
            self._writer.close()
            write_json(
                report_path(self.path),
                {
                    "written": self.written,
                    "atoms": self.atoms,
                    "n_rejected": self.n_rejected,
                    "rejected": self._rejected,
                    "warnings": self._warnings,
                },
            )

    def add(self, candidate: Structure) -> bool:
        """Write a structure, or reject it where something is wrong with it; return whether it was written."""
        reason = fault(candidate) or self._repeated(candidate.structure_id)
        if reason is not None:
            self.reject(candidate.structure_id, reason)
            return False
        self._rows.append(candidate)
        self.written += 1
        self.atoms += len(candidate)
        self._row_atoms += len(candidate)
        if len(self._rows) == ROW_GROUP or self._row_atoms >= ROW_GROUP_ATOMS:
            self._collect()
        return True

    def add_table(self, table: pa.Table, rejected: Sequence[tuple[int, str, str]] = ()) -> None:
        """Write what another process has gathered and checked; see ``structure_blocks``.

        Args:
            table: structures that have no fault; repeated ids are rejected here.
            rejected: row that it came before, id and reason of each rejected structure, in order.
        """
        ids = table.column("structure_id").to_pylist()
        keys = {_key(structure_id) for structure_id in ids}
        if not rejected and len(keys) == len(ids) and self._seen.isdisjoint(keys):
            self._seen |= keys
            sound = table
        else:
            sound = table.filter(pa.array(self._kept(ids, deque(rejected)), pa.bool_()))
        self.written += sound.num_rows
        self.atoms += pc.sum(pc.list_value_length(sound.column("numbers"))).as_py() or 0
        self._collect(sound)

    def reject(self, structure_id: str, reason: str) -> None:
        """Count a structure as bad."""
        self.n_rejected += 1
        self._reasons[reason] += 1
        if len(self._rejected) < _REPORTED:
            self._rejected.append({"id": structure_id, "reason": reason})

    def warn(self, message: str) -> None:
        """Say something about the raw file in the log and in the report."""
        _LOGGER.warning("%s: %s", self.path, message)
        self._warnings.append(message)

    def _kept(self, ids: Sequence[str], waiting: deque[tuple[int, str, str]]) -> list[bool]:
        """Reject repeated ids and what waits, in the order of the rows; return which rows are left."""
        keep = []
        for row, structure_id in enumerate(ids):
            while waiting and waiting[0][0] <= row:
                self.reject(*waiting.popleft()[1:])
            reason = self._repeated(structure_id)
            if reason is not None:
                self.reject(structure_id, reason)
            keep.append(reason is None)
        for _, structure_id, reason in waiting:
            self.reject(structure_id, reason)
        return keep

    def _repeated(self, structure_id: str) -> str | None:
        key = _key(structure_id)
        if key in self._seen:
            return "duplicate structure_id"
        self._seen.add(key)
        return None

    def _collect(self, table: pa.Table | None = None) -> None:
        if self._rows:
            self._tables.append(columns_table([structure_columns(self._rows)]))
            self._rows = []
            self._row_atoms = 0
        if table is not None:
            self._tables.append(table)
        self._write_groups()

    def _write_groups(self, last: bool = False) -> None:
        """Write the row groups that are full, or all; they are cut alike however the rows came."""
        while self._tables:
            waiting = pa.concat_tables(self._tables)
            atoms = np.cumsum(pc.list_value_length(waiting.column("numbers")).to_numpy(), dtype=np.int64)
            rows = min(ROW_GROUP, int(np.searchsorted(atoms, ROW_GROUP_ATOMS)) + 1)
            if waiting.num_rows == 0 or (waiting.num_rows < rows and not last):
                return
            group = waiting.slice(0, rows).combine_chunks().cast(self._schema)
            self._writer.write_table(group, row_group_size=ROW_GROUP)
            self._tables = [waiting.slice(rows)]

    def _judge(self) -> None:
        total = self.written + self.n_rejected
        examples = "; ".join(f"{r['id']}: {r['reason']}" for r in self._rejected[:3])
        if self.written == 0:
            raise DataError(f"no usable structure among {total}. {examples}".strip(), file=self.path)
        if self.n_rejected > self.max_bad_fraction * total:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in self._reasons.most_common(5))
            raise DataError(
                f"{self.n_rejected} of {total} structures are damaged, more than max_bad_fraction = "
                f"{self.max_bad_fraction}: {reasons}. First: {examples}. Fetch the raw file again, or raise "
                "max_bad_fraction if the loss is acceptable",
                file=self.path,
            )


def _key(structure_id: str) -> bytes:
    # Eight bytes an id: 1.6 million structures collide with a probability of 1e-7.
    return hashlib.blake2b(structure_id.encode(), digest_size=8).digest()


def report_path(structures: str | Path) -> Path:
    """Return the path of the sidecar report of a structures file."""
    return Path(f"{structures}.report.json")


def structures_metadata(path: str | Path) -> dict[str, Any]:
    """Return the metadata of a structures file, with ``structures``, the number of its rows."""
    file, metadata = _open(path)
    with file:
        return {**metadata, "structures": file.metadata.num_rows}


def read_columns(path: str | Path, columns: Iterable[str]) -> pa.Table:
    """Return some columns of a structures file, whole: for the small ones (ids, energy above relaxed)."""
    file, _ = _open(path)
    with file:
        return _read(file, path, columns=list(columns))


def read_structures(path: str | Path, rows: ArrayLike | None = None) -> Iterator[tuple[int, Structure]]:
    """Stream structures with their row numbers, a row group at a time.

    Args:
        path: a structures file.
        rows: only these rows, strictly increasing; row groups without any of them are not read.

    Raises:
        DataError: the file is damaged or of another schema, or ``rows`` asks for what is not there.
    """
    file, _ = _open(path)
    with file:
        total = file.metadata.num_rows
        wanted = None if rows is None else np.asarray(rows, dtype=np.int64)
        if wanted is not None and wanted.size:
            if (np.diff(wanted) <= 0).any():
                raise ValueError("rows must be strictly increasing")
            if wanted[0] < 0 or wanted[-1] >= total:
                raise DataError(
                    f"rows {wanted[0]} to {wanted[-1]} asked for, but there are {total}: the splits belong to "
                    "another structures file; make them again",
                    file=path,
                )
        start = 0
        for group in range(file.metadata.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            if wanted is None:
                local = np.arange(stop - start)
            else:
                local = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, stop)] - start
            if local.size:
                table = _read(file, path, group=group)
                for row, item in zip(local + start, _structures(table, local), strict=True):
                    yield int(row), item
            start = stop


def _open(path: str | Path) -> tuple[pq.ParquetFile, dict[str, Any]]:
    file, metadata = open_parquet(path, SCHEMA, VERSION)
    # Pages have checksums, the footer has none.
    if not file.schema_arrow.equals(FIELDS):
        file.close()
        raise DataError("damaged (its columns are other ones); delete it and make it again", file=path)
    return file, metadata


def _read(
    file: pq.ParquetFile, path: str | Path, columns: list[str] | None = None, group: int | None = None
) -> pa.Table:
    try:
        return file.read(columns=columns) if group is None else file.read_row_group(group, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"damaged ({error}); delete it and make it again", file=path) from error


def _structures(table: pa.Table, rows: NDArray[np.int64]) -> Iterator[Structure]:
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    flat = {
        name: (columns[name].offsets.to_numpy(), columns[name].values.to_numpy())
        for name in ("numbers", "positions", "forces")
    }
    cells = columns["cell"].flatten().to_numpy().reshape(-1, 3, 3)

    def ragged(name: str, row: int) -> NDArray[Any]:
        offsets, values = flat[name]
        # Copied: a caller who keeps one structure should not keep the whole row group alive.
        return np.array(values[offsets[row] : offsets[row + 1]])

    for row in rows.tolist():
        yield Structure(
            structure_id=columns["structure_id"][row].as_py(),
            group_id=columns["group_id"][row].as_py(),
            numbers=ragged("numbers", row),
            positions=ragged("positions", row).reshape(-1, 3),
            cell=np.array(cells[row]),
            pbc=columns["pbc"][row].as_py(),
            energy=columns["energy"][row].as_py(),
            forces=ragged("forces", row).reshape(-1, 3),
            energy_above_relaxed=columns["energy_above_relaxed"][row].as_py(),
        )
