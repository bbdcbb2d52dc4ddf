"""The long tables of metrics and of curves: their columns, order, reading, writing and merging."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from forceuq.calibration_kinds import CALIBRATION_KINDS
from forceuq.errors import DataError
from forceuq.files import whole_file
from forceuq.parquet_schema import open_parquet, schema_metadata

VERSION = 1
LABELS = ("dataset", "task", "split", "method", "seed")

Kind = Literal["metrics", "curves"]

_TEXT = pa.string()
_KEYS = [
    ("dataset", _TEXT),
    ("task", _TEXT),
    ("split", _TEXT),
    ("method", _TEXT),
    ("calibration", _TEXT),
    ("seed", pa.int64()),
]
_SCHEMAS: dict[Kind, list[tuple[str, pa.DataType]]] = {
    "metrics": [*_KEYS, ("metric", _TEXT), ("value", pa.float64()), ("n_atoms", pa.int64()), ("note", _TEXT)],
    "curves": [*_KEYS, ("curve", _TEXT), ("x", pa.float64()), ("y", pa.float64())],
}
_IDENTITY: dict[Kind, list[str]] = {
    "metrics": [*[name for name, _ in _KEYS], "metric"],
    "curves": [*[name for name, _ in _KEYS], "curve", "x"],
}


def _ordered(frame: pd.DataFrame, kind: Kind) -> pd.DataFrame:
    """Return the columns in order and the rows sorted by what identifies them (calibrations as listed)."""
    frame = frame[[name for name, _ in _SCHEMAS[kind]]]
    rank = {name: i for i, name in enumerate(CALIBRATION_KINDS)}
    return frame.sort_values(
        _IDENTITY[kind],
        key=lambda column: (
            column.map(lambda x: (rank.get(x, len(rank)), x)) if column.name == "calibration" else column
        ),
        kind="stable",
        ignore_index=True,
    )


def metrics_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a metrics table with its columns and rows in order."""
    return _ordered(frame, "metrics")


def curves_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a curves table with its columns and rows in order."""
    return _ordered(frame, "curves")


def write_frame(frame: pd.DataFrame, path: Path, kind: Kind) -> None:
    """Write a metrics or curves table; the same table gives the same bytes."""
    columns = [
        pa.array([None if pd.isna(x) else str(x) if pa.types.is_string(t) else x for x in frame[name]], type=t)
        for name, t in _SCHEMAS[kind]
    ]
    schema = pa.schema(_SCHEMAS[kind], metadata=schema_metadata(kind, VERSION))
    with whole_file(path) as temporary:
        pq.write_table(pa.Table.from_arrays(columns, schema=schema), temporary, compression="zstd")


def read_frame(path: Path, kind: Kind) -> pd.DataFrame:
    """Read a metrics or curves table.

    Raises:
        DataError: the file is missing, damaged or of another schema.
    """
    parquet, _ = open_parquet(path, kind, VERSION)
    with parquet:
        frame: pd.DataFrame = parquet.read().to_pandas()
    return frame


def _merge(paths: Sequence[Path], output: Path, kind: Kind) -> None:
    if not paths:
        raise DataError(f"there are no {kind} to merge", file=output)
    tables = []
    for path in paths:
        parquet, _ = open_parquet(path, kind, VERSION)
        with parquet:
            tables.append(parquet.read())
    frame = _ordered(pa.concat_tables(tables).to_pandas(), kind)
    twice = frame.duplicated(_IDENTITY[kind])
    if twice.any():
        raise DataError(
            f"two of the {len(paths)} files hold the same row; give each file once",
            file=output,
            record=frame.loc[twice, _IDENTITY[kind]].iloc[0].to_dict(),
        )
    write_frame(frame, output, kind)


def merge_metrics(paths: Sequence[Path], output: Path) -> None:
    """Merge metrics tables into one; the bytes do not depend on the order of ``paths``.

    Raises:
        DataError: no paths, a file that cannot be used, or a number that stands in two of them.
    """
    _merge(paths, output, "metrics")


def merge_curves(paths: Sequence[Path], output: Path) -> None:
    """Merge curves tables into one, as ``merge_metrics`` does."""
    _merge(paths, output, "curves")
