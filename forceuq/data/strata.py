"""Structures, atoms and groups in each stratum of energy above the relaxed structure, and in which part they are."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from numpy.typing import NDArray

from forceuq.data.splits import read_part
from forceuq.data.structures import SCHEMA, VERSION, read_columns
from forceuq.errors import DataError
from forceuq.files import whole_file
from forceuq.parquet_schema import open_parquet

NAMES = ("ID", "Near", "Mid", "Far")
UNDEFINED = "undefined"
NO_PART = "in no part"
_WIDTH = 0.002  # eV/atom: the bins are about even below it and grow with the energy above it


def count_strata(
    structures: Path, splits: Path, parts: Sequence[str], boundaries: Sequence[float], bins: int = 60
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Count structures by stratum and part.

    Memory: a few dozen bytes a structure; positions and forces are not read.

    Args:
        structures: a structures file.
        splits: its splits file.
        parts: the parts, in the order of the rows.
        boundaries: between ID, near, mid and far, eV/atom; a stratum includes its lower boundary.
        bins: of the histogram, about; none goes over a boundary.

    Returns:
        The counts, a row a stratum and part that hold anything (columns stratum, from, to, part, structures, atoms,
        groups; from and to in eV/atom, null at the open ends and for structures without the energy), and the
        histogram, a row a bin and part (columns from, to, part, structures).

    Raises:
        DataError: no structure has an energy above the relaxed one.
    """
    table = read_columns(structures, ["group_id", "energy_above_relaxed"])
    above = table.column("energy_above_relaxed").to_numpy().astype(float)
    defined = np.isfinite(above)
    if not defined.any():
        raise DataError("no structure has an energy above the relaxed one, so there are no strata", file=structures)
    _, group = np.unique(np.asarray(table.column("group_id").to_pylist(), dtype=object), return_inverse=True)
    atoms = _atoms(structures)
    names = [*parts, NO_PART]
    part = np.full(len(above), len(parts))
    for index, name in enumerate(parts):
        part[read_part(splits, name)] = index
    stratum = np.where(defined, np.digitize(above, boundaries), len(NAMES))
    ends = [None, *map(float, boundaries), None]
    rows = []
    for code, name in enumerate((*NAMES, UNDEFINED)):
        low, high = (None, None) if name == UNDEFINED else (ends[code], ends[code + 1])
        for index, part_name in enumerate(names):
            chosen = (stratum == code) & (part == index)
            if chosen.any():
                counted = (int(chosen.sum()), int(atoms[chosen].sum()), len(np.unique(group[chosen])))
                rows.append((name, low, high, part_name, *counted))
    counts = pd.DataFrame(rows, columns=["stratum", "from", "to", "part", "structures", "atoms", "groups"])
    return counts, _histogram(above[defined], part[defined], names, boundaries, bins)


def write_table(counts: pd.DataFrame, output: Path) -> None:
    """Write the counts as .csv and as a .md table with their sums; ``output`` has any suffix."""
    with whole_file(output.with_suffix(".csv")) as temporary:
        counts.to_csv(temporary, index=False, lineterminator="\n")
    lines = ["| Stratum | eV/atom | Part | Structures | Atoms | Groups |", "| --- | --- | --- | ---: | ---: | ---: |"]
    previous = None
    for row in counts.to_dict("records"):
        names = (row["stratum"], _range(row["from"], row["to"])) if row["stratum"] != previous else ("", "")
        numbers = [f"{row[name]:,}" for name in ("structures", "atoms", "groups")]
        lines.append("| " + " | ".join([*names, row["part"], *numbers]) + " |")
        previous = row["stratum"]
    sums = [f"{counts[name].sum():,}" for name in ("structures", "atoms")]
    # Groups have structures in several strata: their numbers do not add up.
    lines.append(f"| All | | | {sums[0]} | {sums[1]} | |")
    with whole_file(output.with_suffix(".md")) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _atoms(structures: Path) -> NDArray[np.int64]:
    """Return the number of atoms of each structure, read a batch at a time."""
    file, _ = open_parquet(structures, SCHEMA, VERSION)
    with file:
        batches = file.iter_batches(batch_size=10_000, columns=["numbers"])
        lengths = [pc.list_value_length(batch.column(0)).to_numpy(zero_copy_only=False) for batch in batches]
    return np.concatenate(lengths).astype(np.int64)


def _histogram(
    above: NDArray[np.float64], part: NDArray[np.int64], names: list[str], boundaries: Sequence[float], bins: int
) -> pd.DataFrame:
    low, high = float(above.min()), float(above.max())
    # Even on the scale of asinh, stratum by stratum.
    knots = np.array([low, *(b for b in boundaries if low < b < high), max(high, low + 1e-9)])
    scaled = np.arcsinh(knots / _WIDTH)
    numbers = np.maximum(1, np.round(bins * np.diff(scaled) / (scaled[-1] - scaled[0]))).astype(int).tolist()
    edges = [knots[:1]]
    for index, number in enumerate(numbers):
        inner = np.linspace(scaled[index], scaled[index + 1], number + 1)[1:-1]
        edges += [_WIDTH * np.sinh(inner), knots[index + 1 : index + 2]]
    ends = np.concatenate(edges)
    frames = []
    for index, name in enumerate(names):
        counted, _ = np.histogram(above[part == index], ends)
        frames.append(pd.DataFrame({"from": ends[:-1], "to": ends[1:], "part": name, "structures": counted}))
    return pd.concat(frames, ignore_index=True)


def _range(low: float | None, high: float | None) -> str:
    bounds = [value for value in (low, high) if value is not None and np.isfinite(value)]
    if not bounds:
        return "–"
    if len(bounds) == 2:
        return f"{low:g} to {high:g}"
    return f"{low:g} and above" if bounds[0] == low else f"below {high:g}"
