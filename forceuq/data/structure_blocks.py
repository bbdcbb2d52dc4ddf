"""Structures gathered by one process to be written by another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from forceuq.data.structure_columns import structures_table
from forceuq.data.structures import HEAVIEST, LEAST_VOLUME, Structure, fault


def all_sound(candidates: Sequence[Structure]) -> bool:
    """Return whether nothing is wrong with any of some structures, as far as can be told of all at once.

    False may also be said of sound ones: those with energies that are None, or without a cell, or whose sums overflow.
    """
    for s in candidates:
        n = len(s.numbers)
        shapes = (s.numbers.shape, s.positions.shape, s.forces.shape, s.cell.shape)
        if n == 0 or not s.pbc or shapes != ((n,), (n, 3), (n, 3), (3, 3)) or not (s.structure_id and s.group_id):
            return False
    if not candidates:
        return True
    energies = 0.0
    for s in candidates:
        if s.energy is None or s.energy_above_relaxed is None:
            return False
        energies += s.energy + s.energy_above_relaxed
    numbers, positions, forces = (
        np.concatenate([getattr(s, name) for s in candidates]) for name in ("numbers", "positions", "forces")
    )
    cells = np.stack([s.cell for s in candidates])
    finite = [float(positions.sum()), float(forces.sum()), float(cells.sum()), energies]
    return bool(
        all(map(math.isfinite, finite))
        and numbers.min() >= 1
        and numbers.max() <= HEAVIEST
        and np.abs(np.linalg.det(cells)).min() >= LEAST_VOLUME
    )


@dataclass
class StructureBlock:
    """Sound structures and what was rejected between them, in the order in which they came.

    Args:
        rejected: number of sound structures before it, id and reason of each rejected one.
    """

    rejected: list[tuple[int, str, str]] = field(default_factory=list)
    _rows: list[Structure] = field(default_factory=list)

    def add(self, candidate: Structure) -> None:
        """Add a structure, or reject it where something is wrong with it."""
        reason = fault(candidate)
        if reason is None:
            self._rows.append(candidate)
        else:
            self.reject(candidate.structure_id, reason)

    def add_all(self, candidates: Sequence[Structure]) -> None:
        """Add structures as ``add`` does one; quicker where all are sound."""
        if all_sound(candidates):
            self._rows.extend(candidates)
        else:
            for candidate in candidates:
                self.add(candidate)

    def reject(self, structure_id: str, reason: str) -> None:
        """Count a structure as bad."""
        self.rejected.append((len(self._rows), structure_id, reason))

    def table(self) -> pa.Table:
        """Return the sound structures as a table for ``StructureWriter.add_table``."""
        return structures_table(self._rows)
