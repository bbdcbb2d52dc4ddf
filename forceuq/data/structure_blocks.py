"""Structures gathered by one process to be written by another."""

from dataclasses import dataclass, field

import pyarrow as pa

from forceuq.data.structure_columns import structures_table
from forceuq.data.structures import Structure, fault


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

    def reject(self, structure_id: str, reason: str) -> None:
        """Count a structure as bad."""
        self.rejected.append((len(self._rows), structure_id, reason))

    def table(self) -> pa.Table:
        """Return the sound structures as a table for ``StructureWriter.add_table``."""
        return structures_table(self._rows)
