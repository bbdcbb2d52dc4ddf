"""The posterior over the last layer's weights, and what it predicts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from scipy.linalg import solve_triangular

from forceuq.bll.evidence import factorise, posterior_mean
from forceuq.bll.statistics import SufficientStatistics
from forceuq.bll.tensors import load_tensors
from forceuq.errors import FitError
from forceuq.files import whole_file

_SCHEMA = "bll-posterior"
_ROWS = 8192


@dataclass(frozen=True)
class Posterior:
    """The matrix-normal posterior MN(B_n, Lambda_n^-1, Sigma_e) (eq. 5).

    Args:
        mean: (D, K) B_n.
        factor: (D, D) lower Cholesky factor of Lambda_n.
        noise: (K, K) Sigma_e.
        precision: (D,) lambda, the diagonal of Lambda_0.
    """

    mean: NDArray[np.float64]
    factor: NDArray[np.float64]
    noise: NDArray[np.float64]
    precision: NDArray[np.float64]

    @classmethod
    def from_statistics(
        cls, statistics: SufficientStatistics, precision: NDArray[np.float64], noise: NDArray[np.float64]
    ) -> "Posterior":
        """Return the posterior of the data whose statistics are given (eq. 5).

        Args:
            statistics: of the data.
            precision: (D,) lambda > 0.
            noise: (K, K) Sigma_e.

        Raises:
            FitError: a precision that is not positive, or Lambda_n not positive definite to rounding.
        """
        if not (np.isfinite(precision).all() and np.all(precision > 0.0)):
            raise FitError("every lambda of the prior must be positive and finite")
        lower, scale = factorise(statistics.gram, precision)
        mean = posterior_mean(lower, scale, statistics.cross)
        return cls(mean, np.tril(scale[:, None] * lower), noise.copy(), precision.copy())

    def predict(self, phi: NDArray[Any]) -> NDArray[np.float64]:
        """Return the predictive mean phi^T B_n (eq. 8), (n, K), for features (n, D)."""
        return np.concatenate(
            [phi[start : start + _ROWS].astype(np.float64) @ self.mean for start in range(0, max(len(phi), 1), _ROWS)]
        )

    def variance_factor(self, phi: NDArray[Any]) -> NDArray[np.float64]:
        """Return u(phi) = phi^T Lambda_n^-1 phi (eq. 8), (n,), for features (n, D)."""
        u = np.empty(len(phi))
        for start in range(0, len(phi), _ROWS):
            rows = slice(start, start + _ROWS)
            whitened = self._whiten(phi[rows])
            u[rows] = np.einsum("dn,dn->n", whitened, whitened)
        return u

    def joint_covariance(self, phi: NDArray[Any]) -> NDArray[np.float64]:
        """Return the covariance of the targets of m atoms together (eq. 3), (m, K, m, K).

        ``Cov(y_i, y_j) = (delta_ij + phi_i^T Lambda_n^-1 phi_j) Sigma_e``, noise included, in element
        ``[i, :, j, :]``. Memory is (m K)^2 numbers.
        """
        whitened = self._whiten(phi)
        rows = np.eye(len(phi)) + whitened.T @ whitened
        covariance: NDArray[np.float64] = np.einsum("ij,kl->ikjl", rows, self.noise)
        return covariance

    def _whiten(self, phi: NDArray[Any]) -> NDArray[np.float64]:
        whitened: NDArray[np.float64] = solve_triangular(
            self.factor, phi.astype(np.float64).T, lower=True, check_finite=False
        )
        return whitened

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, the same bytes for the same posterior."""
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in ("mean", "factor", "noise", "precision")}
        with whole_file(path) as temporary:
            save_file(tensors, temporary, metadata={"forceuq": _SCHEMA})

    @classmethod
    def load(cls, path: str | Path) -> "Posterior":
        """Read what ``save`` wrote.

        Raises:
            DataError: the file is damaged or not a posterior.
        """
        return cls(**load_tensors(path, _SCHEMA, ("mean", "factor", "noise", "precision")))
