"""Parts of a data set and the tasks made of them.

A data set is cut into parts; each structure is in at most one. The splits file is Parquet with a row for each
structure that is in a part: ``structure_id``, ``row`` (its row in the structures file), ``part``.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from forceuq.data.structures import read_columns
from forceuq.errors import DataError
from forceuq.files import whole_file
from forceuq.parquet_schema import open_parquet, schema_metadata

SCHEMA = "splits"
VERSION = 1
WHOLE = "all"
"""The part of a data set that is not cut: every structure is in it."""


@dataclass(frozen=True)
class PartRef:
    """A part of a data set, by the data set's name in the configuration."""

    dataset: str
    part: str


@dataclass(frozen=True)
class Task:
    """What a method is fitted to, and what it is evaluated on.

    Args:
        name: unique within the data set.
        train: parts that the method is fitted to.
        validation: parts for early stopping and recalibration.
        evaluate: split name (``id``, ``ood``, ...) -> the parts that make it up.
    """

    name: str
    train: tuple[PartRef, ...]
    validation: tuple[PartRef, ...]
    evaluate: dict[str, tuple[PartRef, ...]]


def write_splits(
    path: str | Path,
    structure_ids: Sequence[str],
    rows: ArrayLike,
    parts: Sequence[str],
    *,
    expected: Iterable[str],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a splits file; its metadata holds ``counts`` (part -> structures) beside ``metadata``.

    Args:
        path: the file.
        structure_ids: of each structure that is in a part.
        rows: (n,) its row in the structures file.
        parts: (n,) its part.
        expected: all parts of the data set.
        metadata: what the split was made with (the seed and so on).

    Raises:
        DataError: a part without structures (named), an unexpected part, or a structure in two parts.
    """
    row = np.asarray(rows, dtype=np.int64)
    if not len(structure_ids) == len(row) == len(parts):
        raise ValueError(f"{len(structure_ids)} ids, {len(row)} rows and {len(parts)} parts")
    order = np.argsort(row, kind="stable")
    if np.any(np.diff(row[order]) == 0):
        twice = structure_ids[int(order[np.flatnonzero(np.diff(row[order]) == 0)[0]])]
        raise DataError("a structure is in two parts", file=path, record=twice)
    part = np.asarray(parts, dtype=object)[order]
    names, sizes = np.unique(part.astype(str), return_counts=True)
    counts = {str(name): int(size) for name, size in zip(names, sizes, strict=True)}
    wanted = tuple(expected)
    if unexpected := sorted(set(counts) - set(wanted)):
        raise DataError(f"parts {unexpected} are not among {list(wanted)}", file=path)
    if empty := [name for name in wanted if name not in counts]:
        raise DataError(
            f"no structure is in part {', '.join(repr(name) for name in empty)} (found: {counts}); use more data, "
            "another seed, or other fractions or boundaries",
            file=path,
        )
    schema = pa.schema(
        [
            pa.field("structure_id", pa.string(), nullable=False),
            pa.field("row", pa.int64(), nullable=False),
            pa.field("part", pa.string(), nullable=False),
        ],
        metadata=schema_metadata(SCHEMA, VERSION, {**(metadata or {}), "counts": counts}),
    )
    ids = pa.array([structure_ids[index] for index in order.tolist()], pa.string())
    table = pa.Table.from_arrays([ids, pa.array(row[order]), pa.array(part, pa.string())], schema=schema)
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def write_whole(structures: str | Path, path: str | Path, source: str) -> None:
    """Write the splits file of a data set that is not cut: every structure is in the part ``all``."""
    ids = read_columns(structures, ["structure_id"]).column(0).to_pylist()
    write_splits(path, ids, np.arange(len(ids)), [WHOLE] * len(ids), expected=(WHOLE,), metadata={"source": source})


def cut_groups(groups: Sequence[str], fractions: tuple[float, float, float], seed: int) -> NDArray[np.int64]:
    """Cut groups into train, validation and test; no group is in two of them.

    The cut depends on the seed and on the set of groups alone, not on their order or how often each occurs.

    Args:
        groups: (n,) the group of each structure.
        fractions: shares of the groups in train, validation and test; they sum to 1.
        seed: of the cut.

    Returns:
        (n,) 0 for train, 1 for validation, 2 for test.
    """
    names, group = np.unique(np.asarray(groups, dtype=object), return_inverse=True)
    train, validation = round(fractions[0] * len(names)), round(fractions[1] * len(names))
    use = np.full(len(names), 2, dtype=np.int64)
    order = np.random.default_rng(seed).permutation(len(names))
    use[order[:train]] = 0
    use[order[train : train + validation]] = 1
    return use[group]


def read_part(splits: str | Path, part: str) -> NDArray[np.int64]:
    """Return the rows (n,) of a part's structures in the structures file, strictly increasing.

    Raises:
        DataError: the file is damaged or of another schema, or there is no such part (with the nearest names).
    """
    file, metadata = open_parquet(splits, SCHEMA, VERSION)
    with file:
        counts = metadata["counts"]
        if part not in counts:
            near = difflib.get_close_matches(part, counts, n=3, cutoff=0.0)
            raise DataError(f"there is no part {part!r}; nearest: {', '.join(near)}", file=splits)
        try:
            table = file.read(columns=["row", "part"])
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"damaged ({error}); delete it and make it again", file=splits) from error
    rows = table.column("row").filter(pc.equal(table.column("part"), part)).to_numpy()
    if len(rows) != counts[part]:
        raise DataError(f"{len(rows)} structures in part {part!r}, not {counts[part]}; make it again", file=splits)
    return np.asarray(rows, dtype=np.int64)


def part_counts(splits: str | Path) -> dict[str, int]:
    """Return the number of structures in each part."""
    file, metadata = open_parquet(splits, SCHEMA, VERSION)
    with file:
        return dict(metadata["counts"])
