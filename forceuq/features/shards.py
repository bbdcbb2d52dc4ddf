"""How the structures of a part are cut into row groups, shards and forward passes.

All of it follows from the numbers of atoms of the part's structures. The part is cut into row groups first; a
shard is a run of whole row groups, a forward pass lies within one. So features and row groups, the unit of what
is read in shuffled order, are the same to the last bit in whatever number of shards they are made.
"""

import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forceuq.data.structures import read_columns
from forceuq.errors import ConfigurationError
from forceuq.features.layout import ROW_GROUP_ATOMS, cuts

# A small part has smaller row groups, so that it can be cut into shards too.
_LEAST_ROW_GROUP_ATOMS = 1024
_ROW_GROUPS = 256


def atom_counts(structures: Path, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of atoms (n,) of some rows of a structures file."""
    numbers = read_columns(structures, ["numbers"]).column("numbers")
    counts = [np.diff(chunk.offsets.to_numpy()) for chunk in numbers.chunks]
    return np.concatenate([np.zeros(0, np.int64), *counts])[rows].astype(np.int64)


def row_group_atoms(total: int) -> int:
    """Return how many atoms a row group of a part of ``total`` atoms has, at most."""
    return min(ROW_GROUP_ATOMS, max(_LEAST_ROW_GROUP_ATOMS, total // _ROW_GROUPS))


def shard_bounds(atoms: NDArray[np.int64], shards: int) -> NDArray[np.int64]:
    """Return where each shard of a part begins and the last one ends, (shards + 1,) offsets into its structures.

    Shards are balanced by atoms: each begins at the row group's end that is nearest to its share. A part with
    fewer row groups than shards has shards without structures.

    Args:
        atoms: (n,) atoms of each of the part's structures.
        shards: how many.
    """
    starts = _starts(atoms)
    ends = np.asarray(cuts(starts, row_group_atoms(int(starts[-1]))))
    shares = starts[-1] * np.arange(1, shards) / shards
    after = np.minimum(np.searchsorted(ends, shares), len(ends) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(shares - ends[before] < ends[after] - shares, ends[before], ends[after])
    return np.searchsorted(starts, np.concatenate([[0], nearest, [starts[-1]]])).astype(np.int64)


def passes(atoms: NDArray[np.int64], most: int, max_atoms: int) -> list[tuple[int, int]]:
    """Return the forward passes over a shard, (first, last + 1) of consecutive structures each.

    The structures of a row group go in passes of nearly equal numbers of atoms.

    Args:
        atoms: (n,) atoms of each of the shard's structures.
        most: atoms in a row group of the part, at most (``row_group_atoms``).
        max_atoms: atoms in a pass, at most; a larger structure goes alone.
    """
    starts = _starts(atoms)
    found: list[tuple[int, int]] = []
    for low, high in itertools.pairwise(cuts(starts, most)):
        first, last = np.searchsorted(starts, [low, high])
        edges = _even(starts[first : last + 1], max_atoms) + first
        found += [(int(a), int(b)) for a, b in itertools.pairwise(edges)]
    return found


def check_shard(shard: int, shards: int) -> None:
    """Raise ConfigurationError unless there can be such a shard."""
    if not 0 <= shard < shards:
        raise ConfigurationError(f"shard {shard} of {shards}: they are counted from 0 to {shards - 1}")


def _starts(atoms: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(atoms)]).astype(np.int64)


def _even(starts: NDArray[np.int64], max_atoms: int) -> NDArray[np.int64]:
    """Return offsets that cut structures into as few nearly equal runs as do not exceed ``max_atoms``."""
    total, n = int(starts[-1] - starts[0]), len(starts) - 1
    least = -(-total // max_atoms)
    for pieces in range(least, min(least + 4, n)):
        shares = starts[0] + total * np.arange(1, pieces) / pieces
        edges = np.unique(np.concatenate([[0], np.searchsorted(starts, shares), [n]])).astype(np.int64)
        if np.diff(starts[edges]).max() <= max_atoms:
            return edges
    # Structures about as large as a pass: there is no even cut.
    return np.searchsorted(starts - starts[0], cuts(starts - starts[0], max_atoms)).astype(np.int64)
