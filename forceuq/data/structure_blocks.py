"""Structures gathered by one process to be written by another."""

import math
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from forceuq.data.structure_columns import Columns, columns_table, structure_columns
from forceuq.data.structure_faults import HEAVIEST, LEAST_VOLUME, fault, may_coincide
from forceuq.data.structures import Structure

# Columns: so few that what is computed of them stays in the processor's cache.
_AT_ONCE = 24


def all_sound(columns: Columns) -> bool:
    """Return whether nothing is wrong with any of some structures, as far as can be told of all at once.

    False may also be said of sound ones: those with energies that are None, or without a cell, or whose sums overflow,
    or with other than ASCII ids. Atoms at one position are not looked for: see ``StructureBlock.may_coincide``.
    """
    energies = 0.0
    for energy, above in zip(columns.energies, columns.energies_above_relaxed, strict=True):
        if energy is None or above is None:
            return False
        energies += energy + above
    finite = [energies, *(float(array.sum()) for array in (columns.positions, columns.forces, columns.cells))]
    return bool(
        all(columns.structure_ids)
        and all(columns.group_ids)
        and "".join([*columns.structure_ids, *columns.group_ids]).isascii()
        and all(columns.atoms)
        and all(columns.pbc)
        and all(map(math.isfinite, finite))
        and columns.numbers.min() >= 1
        and columns.numbers.max() <= HEAVIEST
        and np.abs(np.linalg.det(columns.cells)).min() >= LEAST_VOLUME
    )


@dataclass
class StructureBlock:
    """Sound structures and what was rejected between them, in the order in which they came.

    Args:
        rejected: number of sound structures before it, id and reason of each rejected one.
    """

    rejected: list[tuple[int, str, str]] = field(default_factory=list)
    _taken: int = 0
    _rows: list[Structure] = field(default_factory=list)
    # What came before the rows.
    _parts: list[Columns] = field(default_factory=list)

    def add(self, candidate: Structure) -> None:
        """Add a structure, or reject it where something is wrong with it."""
        reason = fault(candidate)
        if reason is None:
            self._rows.append(candidate)
            self._taken += 1
        else:
            self.reject(candidate.structure_id, reason)

    def add_columns(self, columns: Columns) -> None:
        """Add structures that are sound: see ``all_sound``."""
        self._gather()
        self._parts.append(columns)
        self._taken += len(columns.atoms)

    def reject(self, structure_id: str, reason: str) -> None:
        """Count a structure as bad."""
        self.rejected.append((self._taken, structure_id, reason))

    def may_coincide(self) -> bool:
        """Return whether two atoms may be at one position in periodic structures that were added as columns.

        Then they are to be added one by one. Looked for in many columns at once, which takes a third of the time.
        """
        self._gather()
        parts = [part for part in self._parts if all(part.pbc)]
        return any(may_coincide(parts[start : start + _AT_ONCE]) for start in range(0, len(parts), _AT_ONCE))

    def table(self) -> pa.Table:
        """Return the sound structures as a table for ``StructureWriter.add_table``."""
        self._gather()
        return columns_table(self._parts)

    def _gather(self) -> None:
        if self._rows:
            self._parts.append(structure_columns(self._rows))
            self._rows = []
