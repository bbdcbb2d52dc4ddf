"""Writing the cache of atom features: Parquet files, a row an atom, and a manifest, last."""

import contextlib
import itertools
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from forceuq.errors import DataError
from forceuq.features.layout import (
    MANIFEST,
    PAGE_BYTES,
    ROW_GROUP_ATOMS,
    SCHEMA,
    VERSION,
    FeatureBlock,
    FeatureMetadata,
    arrow_schema,
    storage_type,
)
from forceuq.features.parquet_file import written
from forceuq.files import whole_file, write_json


class FeatureWriter:
    """Writes the cache of one part, or of a shard of it; a context manager.

    The manifest is written only when the block ends well.

    Args:
        directory: where the cache will be; files of an earlier attempt there are removed.
        metadata: what the cache holds.
        atoms_per_file: a file is closed at the last row group's end before this many atoms.
        row_group_atoms: atoms in a row group, at most (or one structure).
    """

    def __init__(
        self,
        directory: str | Path,
        metadata: FeatureMetadata,
        atoms_per_file: int = 200_000,
        row_group_atoms: int | None = None,
    ) -> None:
        self._directory = Path(directory)
        self._metadata = metadata
        self._atoms_per_file = atoms_per_file
        self._row_group_atoms = ROW_GROUP_ATOMS if row_group_atoms is None else row_group_atoms
        self._schema = arrow_schema(metadata)
        self._files: list[dict[str, Any]] = []
        self._stack = contextlib.ExitStack()
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[FeatureBlock] = []
        self._pending_atoms = 0
        self._file_atoms = 0
        self._file_structures = 0
        self._largest_group = 0
        self._last_structure = -1

    def __enter__(self) -> "FeatureWriter":
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / MANIFEST).unlink(missing_ok=True)
        for stale in [
            *self._directory.glob("atoms-*.parquet"),
            *self._directory.glob(".atoms-*.part.parquet"),
        ]:
            stale.unlink()
        return self

    def add(
        self,
        structure_rows: NDArray[Any],
        atoms: NDArray[Any],
        numbers: NDArray[Any],
        forces: NDArray[Any],
        zbl: NDArray[Any],
        features: NDArray[Any],
    ) -> None:
        """Add the atoms of one or more whole structures, in increasing order of their rows.

        Args:
            structure_rows: (n,) for each atom the row of its structure in the structures file.
            atoms: (n,) 0, 1, ... within each structure.
            numbers: (n,) atomic numbers.
            forces: (n, 3) reference forces, eV/Å.
            zbl: (n, 3) what the backbone adds after its head, eV/Å.
            features: (n, D).

        Raises:
            DataError: wrong shapes, a structure out of order or in pieces, a value that is not finite (or not in
                half precision, where that is what is stored).
        """
        structure = np.array(structure_rows, dtype=np.int64)
        n = len(structure)
        if n == 0:
            return
        block = FeatureBlock(
            structure,
            np.array(atoms, dtype=np.int32),
            np.array(numbers, dtype=np.int16),
            np.array(forces, dtype=np.float64),
            np.array(zbl, dtype=np.float64),
            self._stored(features),
        )
        self._check(block)
        starts = block.starts
        self._last_structure = int(structure[-1])
        for start, stop in itertools.pairwise(starts):
            # Cut by structure, not by call, so that the files do not depend on the batches they came in; and files
            # at the ends of row groups, so that these are the same however the part is cut into shards.
            if self._pending_atoms and self._pending_atoms + stop - start > self._row_group_atoms:
                self._flush()
            self._pending.append(block.rows(int(start), int(stop)))
            self._pending_atoms += int(stop - start)

    def _stored(self, features: NDArray[Any]) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            return np.array(features, dtype=storage_type(self._metadata), order="C")

    def _check(self, block: FeatureBlock) -> None:
        n, width = len(block), self._metadata.width
        shapes = {
            "atoms": (block.atom.shape, (n,)),
            "numbers": (block.number.shape, (n,)),
            "forces": (block.force.shape, (n, 3)),
            "zbl": (block.zbl.shape, (n, 3)),
            "features": (block.features.shape, (n, width)),
        }
        for name, (found, expected) in shapes.items():
            if found != expected:
                raise DataError(f"{name} have shape {found}, expected {expected}", file=self._directory)
        starts = block.starts
        rows = block.structure[starts[:-1]]
        if rows[0] <= self._last_structure or np.any(np.diff(rows) <= 0):
            raise DataError(
                f"structures must come whole and in increasing order of rows: {rows[0]} follows"
                f" {self._last_structure}, or the rows of one call are out of order",
                file=self._directory,
                record=int(rows[0]),
            )
        within = np.arange(n) - np.repeat(starts[:-1], np.diff(starts))
        for name, bad in (
            ("atom indices other than 0, 1, ...", block.atom != within),
            ("a force that is not finite", ~np.isfinite(block.force).all(axis=1)),
            ("a ZBL force that is not finite", ~np.isfinite(block.zbl).all(axis=1)),
            (f"a feature that is not finite in {self._metadata.precision}", ~np.isfinite(block.features).all(axis=1)),
        ):
            if bad.any():
                record = int(block.structure[np.argmax(bad)])
                raise DataError(f"the structure has {name}", file=self._directory, record=record)

    def _path(self) -> Path:
        return self._directory / f"atoms-{len(self._files):05d}.parquet"

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._file_atoms and self._file_atoms + self._pending_atoms > self._atoms_per_file:
            self._close_file()
        if self._writer is None:
            temporary = self._stack.enter_context(whole_file(self._path()))
            # One page a column, which the reader relies on.
            self._writer = self._stack.enter_context(
                pq.ParquetWriter(
                    temporary,
                    self._schema,
                    compression="none",
                    use_dictionary=False,
                    write_statistics=False,
                    data_page_size=PAGE_BYTES,
                )
            )
        columns = {
            name: np.concatenate([getattr(block, name) for block in self._pending])
            for name in ("structure", "atom", "number", "force", "zbl", "features")
        }
        n = len(columns["structure"])
        arrays = [pa.array(columns[name]) for name in ("structure", "atom", "number")]
        arrays += [
            pa.FixedSizeListArray.from_arrays(pa.array(columns[name].ravel()), type=self._schema.field(name).type)
            for name in ("force", "zbl")
        ]
        kind = self._schema.field("features").type
        arrays.append(pa.Array.from_buffers(kind, n, [None, pa.py_buffer(columns["features"].data)]))
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=n)
        self._file_atoms += n
        self._file_structures += len(self._pending)
        self._largest_group = max(self._largest_group, n)
        self._pending = []
        self._pending_atoms = 0

    def _close_file(self) -> None:
        if self._writer is None:
            return
        path = self._path()
        self._stack.close()
        self._writer = None
        self._files.append(
            {
                "file": path.name,
                "atoms": self._file_atoms,
                "structures": self._file_structures,
                "largest_row_group": self._largest_group,
                **written(path),
            }
        )
        self._file_atoms = self._file_structures = self._largest_group = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        self._flush()
        self._close_file()
        write_json(
            self._directory / MANIFEST,
            {
                "schema": SCHEMA,
                "version": VERSION,
                "metadata": asdict(self._metadata),
                "atoms": sum(file["atoms"] for file in self._files),
                "structures": sum(file["structures"] for file in self._files),
                "files": self._files,
            },
        )
