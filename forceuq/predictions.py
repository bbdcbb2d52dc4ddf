"""Predictions of forces with two covariances an atom: a floor and a spread.

The predictive covariance of an atom's force is ``a * floor + b * spread`` (the paper's eq. 12); every method
fills both. A symmetric 3 x 3 matrix is held as six numbers in the order xx, yy, zz, yz, xz, xy (Voigt's).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROWS = np.array([0, 1, 2, 1, 0, 0])
_COLUMNS = np.array([0, 1, 2, 2, 2, 1])


def pack_symmetric(matrices: NDArray[Any]) -> NDArray[np.float64]:
    """Return the six numbers xx, yy, zz, yz, xz, xy of symmetric matrices, (..., 3, 3) -> (..., 6)."""
    return np.asarray(matrices, dtype=np.float64)[..., _ROWS, _COLUMNS]


def unpack_symmetric(packed: NDArray[Any]) -> NDArray[np.float64]:
    """Return the symmetric matrices of ``pack_symmetric``'s six numbers, (..., 6) -> (..., 3, 3)."""
    packed = np.asarray(packed, dtype=np.float64)
    matrices = np.empty((*packed.shape[:-1], 3, 3))
    matrices[..., _ROWS, _COLUMNS] = packed
    matrices[..., _COLUMNS, _ROWS] = packed
    return matrices


@dataclass(frozen=True)
class PredictionBlock:
    """Predictions for n consecutive atoms; a split is any number of blocks.

    Args:
        structure: (n,) int64, the structure's row in its structures file.
        atom: (n,) int32, the atom's index within its structure.
        number: (n,) int16, the atomic number.
        part: (n,) int16, which of the split's parts the structure lies in.
        target: (n, 3) the reference force, whole (whatever the backbone adds after its head included), eV/Å.
        mean: (n, 3) the predicted force, likewise whole, eV/Å.
        floor: (n, 6) covariance that does not depend on the input, (eV/Å)², as ``pack_symmetric`` packs it.
        spread: (n, 6) covariance that does, likewise.
    """

    structure: NDArray[np.int64]
    atom: NDArray[np.int32]
    number: NDArray[np.int16]
    part: NDArray[np.int16]
    target: NDArray[np.float64]
    mean: NDArray[np.float64]
    floor: NDArray[np.float64]
    spread: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.structure)
