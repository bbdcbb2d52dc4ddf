"""What is wrong with a structure."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from forceuq.data.structure_columns import Columns
    from forceuq.data.structures import Structure

HEAVIEST = 118
# Å³ of a periodic cell; below it there is none.
LEAST_VOLUME = 1e-6
# Along each lattice vector, or in an Å.
_PLACES = 2**20
# Odd, and of 64 bits at random: with them places and structures become numbers that hardly ever coincide.
_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], np.uint64)


def fault(candidate: "Structure") -> str | None:
    """Return what is wrong with a structure, or None where nothing is."""
    s = candidate
    n = s.numbers.size
    if not s.structure_id or not s.group_id:
        return "empty structure_id or group_id"
    try:
        f"{s.structure_id}{s.group_id}".encode()
    except UnicodeEncodeError:
        return "structure_id or group_id is no text: bytes that are not UTF-8, or half a surrogate pair"
    if s.numbers.ndim != 1 or n == 0:
        return f"no atoms (numbers have the shape {s.numbers.shape})"
    if s.numbers.min() < 1 or s.numbers.max() > HEAVIEST:
        return f"unknown element: atomic numbers {s.numbers.min()} to {s.numbers.max()}"
    for name, array, shape in (
        ("positions", s.positions, (n, 3)),
        ("forces", s.forces, (n, 3)),
        ("cell", s.cell, (3, 3)),
    ):
        if array.shape != shape:
            return f"{name} have the shape {array.shape}, not {shape}"
        # The sum is quicker, and seldom overflows where all are finite.
        if not (math.isfinite(array.sum()) or np.isfinite(array).all()):
            return f"{name} not finite"
    for name, value in (("energy", s.energy), ("energy_above_relaxed", s.energy_above_relaxed)):
        if value is not None and not math.isfinite(value):
            return f"{name} not finite"
    if s.pbc and abs(np.linalg.det(s.cell)) < LEAST_VOLUME:
        return "periodic with a cell of no volume"
    if _coincident(s.positions, s.cell if s.pbc else None):
        return "two atoms at one position"
    return None


def may_coincide(parts: Sequence["Columns"]) -> bool:
    """Return whether two atoms of a structure may be at one position, for many periodic structures at once.

    True may also be said where none are, but hardly ever is: places are told apart by numbers made of them.
    """
    atoms = np.concatenate([part.atoms for part in parts])
    cells = np.concatenate([part.cells for part in parts])
    with np.errstate(over="ignore", invalid="ignore"):
        towards = np.repeat(np.linalg.inv(cells) * _PLACES, atoms, axis=0)
        places = np.einsum("ni,nij->nj", np.concatenate([part.positions for part in parts]), towards)
        whole = np.rint(places, out=places).astype(np.int64)
    whole &= _PLACES - 1
    keys = np.repeat(np.arange(len(atoms), dtype=np.uint64) * _FACTORS[3], atoms)
    for along in range(3):
        keys += whole.view(np.uint64)[:, along] * _FACTORS[along]
    keys.sort()
    return bool((keys[1:] == keys[:-1]).any())


def _coincident(positions: NDArray[np.float64], cell: NDArray[np.float64] | None) -> bool:
    """Return whether two atoms are at one position, or at images of it, to about a millionth of the cell (of an Å)."""
    if len(positions) == 1:
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        places = np.rint((positions if cell is None else positions @ np.linalg.inv(cell)) * _PLACES)
        if cell is not None:
            places %= _PLACES
    return len(np.unique(places, axis=0)) < len(places)
