"""The columns of a structures file, and structures as a table of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

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
}


def structures_table(rows: Sequence["Structure"]) -> pa.Table:
    """Return structures as a table in the file's columns."""
    if not rows:
        return FIELDS.empty_table()
    atoms = np.cumsum([0, *(len(s) for s in rows)], dtype=np.int32)

    def ragged(name: str, width: int, kind: pa.DataType) -> pa.Array:
        flat = np.concatenate([getattr(s, name).reshape(-1) for s in rows])
        return pa.ListArray.from_arrays(pa.array(atoms * width, pa.int32()), pa.array(flat, kind))

    cells = np.concatenate([s.cell.reshape(-1) for s in rows])
    return pa.Table.from_arrays(
        [
            pa.array([s.structure_id for s in rows], pa.string()),
            pa.array([s.group_id for s in rows], pa.string()),
            ragged("numbers", 1, pa.int32()),
            ragged("positions", 3, pa.float64()),
            pa.FixedSizeListArray.from_arrays(pa.array(cells, pa.float64()), 9),
            pa.array([s.pbc for s in rows], pa.bool_()),
            pa.array([s.energy for s in rows], pa.float64()),
            ragged("forces", 3, pa.float64()),
            pa.array([s.energy_above_relaxed for s in rows], pa.float64()),
        ],
        schema=FIELDS,
    )
