"""The columns of a structures file, and structures as a table of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

if TYPE_CHECKING:
    from forceuq.data.structures import Structure

FIELDS = pa.schema(
    [
        pa.field("structure_id", pa.string(), nullable=False),
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("numbers", pa.list_(pa.int32()), nullable=False),
        pa.field("positions", pa.list_(pa.float64()), nullable=False),
        pa.field("cell", pa.list_(pa.float64(), 9), nullable=False),
        pa.field("pbc", pa.bool_(), nullable=False),
        pa.field("energy", pa.float64()),
        pa.field("forces", pa.list_(pa.float64()), nullable=False),
        pa.field("energy_above_relaxed", pa.float64()),
    ]
)
# Dictionaries of floats that never repeat cost four times the writing and a third of the size.
ENCODING = {
    "compression": "zstd",
    "use_dictionary": ["group_id", "numbers.list.element"],
    "column_encoding": dict.fromkeys(["positions.list.element", "forces.list.element"], "BYTE_STREAM_SPLIT"),
    # Compared whenever a page is read: all positions and forces come from here.
    "write_page_checksum": True,
}


@dataclass(frozen=True, eq=False)
class Columns:
    """Structures, n of them with N atoms in all, an array or a list for each column.

    Args:
        structure_ids: n of them.
        group_ids: n of them.
        atoms: those of each structure.
        numbers: (N,) int32, atomic numbers.
        positions: (N, 3) float64, Å.
        cells: (n, 3, 3) float64, lattice vectors as rows, Å.
        pbc: whether each is periodic.
        energies: eV; None where it is not known.
        forces: (N, 3) float64, eV/Å.
        energies_above_relaxed: eV/atom; None where undefined.
    """

    structure_ids: list[str]
    group_ids: list[str]
    atoms: list[int]
    numbers: NDArray[np.int32]
    positions: NDArray[np.float64]
    cells: NDArray[np.float64]
    pbc: list[bool]
    energies: list[float | None]
    forces: NDArray[np.float64]
    energies_above_relaxed: list[float | None]


def structure_columns(rows: Sequence["Structure"]) -> Columns:
    """Return some structures, at least one, as columns."""
    return Columns(
        structure_ids=[s.structure_id for s in rows],
        group_ids=[s.group_id for s in rows],
        atoms=[len(s) for s in rows],
        numbers=np.concatenate([s.numbers for s in rows]),
        positions=np.concatenate([s.positions for s in rows]),
        cells=np.stack([s.cell for s in rows]),
        pbc=[s.pbc for s in rows],
        energies=[s.energy for s in rows],
        forces=np.concatenate([s.forces for s in rows]),
        energies_above_relaxed=[s.energy_above_relaxed for s in rows],
    )


def columns_table(parts: Sequence[Columns]) -> pa.Table:
    """Return columns, one after another, as a table in the file's columns."""
    if not parts:
        return FIELDS.empty_table()

    def joined(name: str, kind: pa.DataType) -> pa.Array:
        return pa.array(list(chain.from_iterable(getattr(part, name) for part in parts)), kind)

    def flat(name: str, kind: pa.DataType) -> pa.Array:
        return pa.array(np.concatenate([getattr(part, name).reshape(-1) for part in parts]), kind)

    atoms = np.cumsum([0, *chain.from_iterable(part.atoms for part in parts)], dtype=np.int32)

    def ragged(name: str, width: int, kind: pa.DataType) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(atoms * width, pa.int32()), flat(name, kind))

    return pa.Table.from_arrays(
        [
            joined("structure_ids", pa.string()),
            joined("group_ids", pa.string()),
            ragged("numbers", 1, pa.int32()),
            ragged("positions", 3, pa.float64()),
            pa.FixedSizeListArray.from_arrays(flat("cells", pa.float64()), 9),
            joined("pbc", pa.bool_()),
            joined("energies", pa.float64()),
            ragged("forces", 3, pa.float64()),
            joined("energies_above_relaxed", pa.float64()),
        ],
        schema=FIELDS,
    )
