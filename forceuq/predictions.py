"""Predictions of forces with two covariances an atom: a floor and a spread.

The predictive covariance of an atom's force is ``a * floor + b * spread`` (the paper's eq. 12); every method
fills both. A symmetric 3 x 3 matrix is held as six numbers in the order xx, yy, zz, yz, xz, xy (Voigt's).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from forceuq.errors import DataError
from forceuq.files import whole_file
from forceuq.parquet_schema import open_parquet, schema_metadata

SCHEMA = "predictions"
VERSION = 1
VALIDATION_SPLIT = "validation"
"""Name of the split that calibrations are fitted on; no other split's predictions are accepted there."""

_ROW_GROUP = 65_536
_COLUMNS = {
    "structure": pa.int64(),
    "atom": pa.int32(),
    "number": pa.int16(),
    "part": pa.int16(),
    "target": pa.list_(pa.float64(), 3),
    "mean": pa.list_(pa.float64(), 3),
    "floor": pa.list_(pa.float64(), 6),
    "spread": pa.list_(pa.float64(), 6),
}

_PACKED_ROWS = np.array([0, 1, 2, 1, 0, 0])
_PACKED_COLUMNS = np.array([0, 1, 2, 2, 2, 1])


def pack_symmetric(matrices: NDArray[Any]) -> NDArray[np.float64]:
    """Return the six numbers xx, yy, zz, yz, xz, xy of symmetric matrices, (..., 3, 3) -> (..., 6)."""
    return np.asarray(matrices, dtype=np.float64)[..., _PACKED_ROWS, _PACKED_COLUMNS]


def unpack_symmetric(packed: NDArray[Any]) -> NDArray[np.float64]:
    """Return the symmetric matrices of ``pack_symmetric``'s six numbers, (..., 6) -> (..., 3, 3)."""
    packed = np.asarray(packed, dtype=np.float64)
    matrices = np.empty((*packed.shape[:-1], 3, 3))
    matrices[..., _PACKED_ROWS, _PACKED_COLUMNS] = packed
    matrices[..., _PACKED_COLUMNS, _PACKED_ROWS] = packed
    return matrices


@dataclass(frozen=True)
class PredictionBlock:
    """Predictions for n consecutive atoms; a split is any number of blocks.

    Args:
        structure: (n,) int64, the structure's row in its structures file.
        atom: (n,) int32, the atom's index within its structure.
        number: (n,) int16, the atomic number.
        part: (n,) int16, which of the split's parts the structure lies in.
        target: (n, 3) the reference force, whole (whatever the backbone adds after its head included), eV/Å.
        mean: (n, 3) the predicted force, likewise whole, eV/Å.
        floor: (n, 6) covariance that does not depend on the input, (eV/Å)², as ``pack_symmetric`` packs it.
        spread: (n, 6) covariance that does, likewise.
    """

    structure: NDArray[np.int64]
    atom: NDArray[np.int32]
    number: NDArray[np.int16]
    part: NDArray[np.int16]
    target: NDArray[np.float64]
    mean: NDArray[np.float64]
    floor: NDArray[np.float64]
    spread: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.structure)


def _check(block: PredictionBlock, first_row: int, path: Path) -> None:
    """Raise DataError unless the block's arrays have n rows of their widths and are finite."""
    for name, kind in _COLUMNS.items():
        values = getattr(block, name)
        shape = (len(block), kind.list_size) if pa.types.is_fixed_size_list(kind) else (len(block),)
        if np.shape(values) != shape:
            raise DataError(f"'{name}' has shape {np.shape(values)}; {shape} is needed", file=path)
        if len(shape) == 2:
            finite = np.isfinite(values).all(axis=1)
            if not finite.all():
                row = int(np.argmin(finite))
                raise DataError(
                    f"'{name}' of structure {block.structure[row]}, atom {block.atom[row]} is not finite: "
                    f"{np.asarray(values[row]).tolist()}",
                    file=path,
                    record=first_row + row,
                )


def write_predictions(path: str | Path, blocks: Iterable[PredictionBlock], metadata: Mapping[str, Any]) -> int:
    """Write one split's predictions as Parquet, a row an atom, and return the number of atoms.

    Row groups hold a fixed number of atoms whatever the size of the blocks, so the file's bytes do not
    depend on how the method happened to cut its work; memory is one row group and one block.

    Args:
        path: the file; it exists only once it is whole.
        blocks: the predictions in order.
        metadata: what the file is of: dataset, task, split, method, seed, parts (JSON values).

    Raises:
        DataError: an array of the wrong shape, a number that is not finite (with its row), or no atoms.
    """
    path = Path(path)
    schema = pa.schema(
        [pa.field(name, kind, nullable=False) for name, kind in _COLUMNS.items()],
        metadata=schema_metadata(SCHEMA, VERSION, metadata),
    )
    written = waiting = 0
    tables: list[pa.Table] = []
    with (
        whole_file(path) as temporary,
        # Dictionaries pay where values repeat (a constant floor), and cost time where they do not.
        pq.ParquetWriter(
            temporary,
            schema,
            compression="lz4",
            use_dictionary=["number", "part"],
            write_statistics=["structure"],
        ) as writer,
    ):
        for block in blocks:
            _check(block, written + waiting, path)
            tables.append(_table(block, schema))
            waiting += len(block)
            while waiting >= _ROW_GROUP:
                whole = pa.concat_tables(tables)
                writer.write_table(whole.slice(0, _ROW_GROUP).combine_chunks(), row_group_size=_ROW_GROUP)
                written += _ROW_GROUP
                waiting -= _ROW_GROUP
                tables = [whole.slice(_ROW_GROUP)]
        if waiting:
            writer.write_table(pa.concat_tables(tables).combine_chunks(), row_group_size=_ROW_GROUP)
            written += waiting
        if not written:
            raise DataError("there are no atoms to write predictions for", file=path)
    return written


def _table(block: PredictionBlock, schema: pa.Schema) -> pa.Table:
    columns = []
    for name, kind in _COLUMNS.items():
        values = np.ascontiguousarray(getattr(block, name))
        if pa.types.is_fixed_size_list(kind):
            flat = pa.array(values.astype(np.float64, copy=False).ravel())
            columns.append(pa.FixedSizeListArray.from_arrays(flat, type=kind))
        else:
            columns.append(pa.array(values, type=kind))
    return pa.Table.from_arrays(columns, schema=schema)


def predictions_metadata(path: str | Path) -> dict[str, Any]:
    """Return what ``write_predictions`` was told the file is of, with ``n_atoms``.

    Raises:
        DataError: the file is missing, damaged or of another schema.
    """
    parquet, metadata = open_parquet(path, SCHEMA, VERSION)
    with parquet:
        return {**metadata, "n_atoms": parquet.metadata.num_rows}


def read_predictions(path: str | Path, max_atoms: int = 16_384) -> Iterator[PredictionBlock]:
    """Stream a predictions file in blocks of at most ``max_atoms`` atoms; memory is one row group.

    Blocks end where row groups do, so the blocks (and sums over them) are the same on every reading.

    Raises:
        DataError: the file is missing, damaged, of another schema, or holds a number that is not finite.
    """
    path = Path(path)
    parquet, _ = open_parquet(path, SCHEMA, VERSION)
    first_row = 0
    with parquet:
        for group in range(parquet.num_row_groups):
            try:
                table = parquet.read_row_group(group, columns=list(_COLUMNS))
            except (pa.ArrowException, OSError, KeyError) as error:
                raise DataError(
                    f"row group {group} cannot be read ({error}); delete the file and make it again",
                    file=path,
                ) from error
            arrays = {}
            for name, kind in _COLUMNS.items():
                column = table.column(name).combine_chunks()
                if column.null_count:
                    raise DataError(f"'{name}' holds nulls in row group {group}", file=path)
                if pa.types.is_fixed_size_list(kind):
                    arrays[name] = column.flatten().to_numpy().reshape(-1, kind.list_size)
                else:
                    arrays[name] = column.to_numpy()
            for start in range(0, table.num_rows, max_atoms):
                block = PredictionBlock(
                    **{f.name: arrays[f.name][start : start + max_atoms] for f in fields(PredictionBlock)}
                )
                _check(block, first_row + start, path)
                yield block
            first_row += table.num_rows
