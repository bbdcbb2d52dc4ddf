"""The two covariances of each atom diagonalised together, so that any (a, b) costs a few operations an atom.

With ``floor = L L^T`` (Cholesky) and ``L^-1 spread L^-T = V diag(d) V^T``, the predictive covariance is
``a floor + b spread = L V diag(a + b d) V^T L^T``; hence, with ``w = V^T L^-1 (target - mean)``,

    log|a floor + b spread| = log|floor| + sum_k log(a + b d_k),
    squared Mahalanobis distance = sum_k w_k^2 / (a + b d_k).

It holds for a singular spread (an ensemble of two), and loses nothing when b is 10^6 times a.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forceuq.errors import DataError
from forceuq.predictions import PredictionBlock, unpack_symmetric

# A spread that is u times the floor, to rounding, needs no eigenvectors: the BLL's eq. (8).
_ISOTROPIC = 1e-10
# Methods compute their spread in float32 at times: eigenvalues this far below zero are rounding.
_NEGATIVE = 1e-6
# Below this share of its diagonal element a Cholesky pivot is rounding, not variance.
_PIVOT = 1e-14


@dataclass(frozen=True)
class WhitenedBlock:
    """Spread and squared residuals of n atoms in units of the floor.

    Args:
        d: (n, k) eigenvalues of the spread relative to the floor, k = 3, or k = 1 where all three are equal.
        q: (n, k) squared whitened residuals; for k = 1 their sum over the three directions.
        log_det_floor: (n,) log-determinant of the floor.
    """

    d: NDArray[np.float64]
    q: NDArray[np.float64]
    log_det_floor: NDArray[np.float64]

    def scores(self, a: float, b: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return each 3-vector's negative log-likelihood and squared Mahalanobis distance, (n,) each.

        ``nll = (3 log 2 pi + log|C| + m) / 2``, ``m = e^T C^-1 e``, ``C = a floor + b spread``.
        """
        scale = a + b * self.d
        mahalanobis = (self.q / scale).sum(axis=1)
        log_det = np.log(scale).sum(axis=1) * (3 // self.d.shape[1]) + self.log_det_floor
        return 0.5 * (3.0 * np.log(2.0 * np.pi) + log_det + mahalanobis), mahalanobis


def whiten(block: PredictionBlock, first_row: int = 0, file: str | None = None) -> WhitenedBlock:
    """Diagonalise floor and spread of every atom together.

    Args:
        block: n atoms' predictions.
        first_row: row of the block's first atom in its file, for messages.
        file: the file, for messages.

    Raises:
        DataError: a floor that is not positive definite or a spread that is not positive semi-definite, with
            the atom.
    """

    def refuse(bad: NDArray[np.bool_], what: str) -> None:
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(
                f"{what} (structure {block.structure[row]}, atom {block.atom[row]}): "
                f"floor {block.floor[row].tolist()}, spread {block.spread[row].tolist()}",
                file=file,
                record=first_row + row,
            )

    xx, yy, zz, yz, xz, xy = np.ascontiguousarray(block.floor.T)
    with np.errstate(divide="ignore", invalid="ignore"):
        l00 = np.sqrt(xx)
        l10, l20 = xy / l00, xz / l00
        p1 = yy - l10**2
        l11 = np.sqrt(p1)
        l21 = (yz - l20 * l10) / l11
        p2 = zz - l20**2 - l21**2
        l22 = np.sqrt(p2)
        definite = (xx > 0) & (p1 > _PIVOT * yy) & (p2 > _PIVOT * zz)
    refuse(~definite, "the floor covariance is not positive definite")

    inverse = np.zeros((len(block), 3, 3))
    inverse[:, 0, 0], inverse[:, 1, 1], inverse[:, 2, 2] = 1 / l00, 1 / l11, 1 / l22
    inverse[:, 1, 0] = -l10 / (l00 * l11)
    inverse[:, 2, 1] = -l21 / (l11 * l22)
    inverse[:, 2, 0] = (l10 * l21 - l20 * l11) / (l00 * l11 * l22)
    error = (inverse @ (block.target - block.mean)[:, :, None])[:, :, 0]
    relative = inverse @ unpack_symmetric(block.spread) @ inverse.transpose(0, 2, 1)
    log_det_floor = 2.0 * (np.log(l00) + np.log(l11) + np.log(l22))

    u = np.trace(relative, axis1=1, axis2=2) / 3.0
    anisotropy = np.abs(relative - u[:, None, None] * np.eye(3)).max(axis=(1, 2))
    if (anisotropy <= _ISOTROPIC * u).all():
        return WhitenedBlock(u[:, None], (error**2).sum(axis=1)[:, None], log_det_floor)
    d, vectors = np.linalg.eigh(relative)
    refuse(d[:, 0] < -_NEGATIVE * np.abs(d).max(axis=1), "the spread covariance has a negative eigenvalue")
    q = (vectors.transpose(0, 2, 1) @ error[:, :, None])[:, :, 0] ** 2
    return WhitenedBlock(np.maximum(d, 0.0), q, log_det_floor)
