"""The preconditioner of a Gaussian process: its kernel matrix from some of the columns. Imports torch."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from forceuq.gp.kernels import Hyperparameters, KernelName, covariance

# Added to the pivots' kernel matrix, as a share of the outputscale. The pivots are chosen once and the hyperparameters
# move on, so that matrix may become singular; any positive definite preconditioner gives the right solution.
_JITTER = 1e-8


@dataclass(frozen=True)
class Preconditioner:
    """P = basis diag(values) basis^T + noise: the kernel matrix from its columns at the pivots, plus noise.

    The low rank's eigenvectors give every power of P: its inverse and its roots cost two products with the basis.

    Args:
        basis: (n, r), orthonormal.
        values: (r,) eigenvalues of the low-rank part.
        noise: variance.
    """

    basis: Tensor
    values: Tensor
    noise: float

    def power(self, exponent: float, vectors: Tensor) -> Tensor:
        """Return P^exponent times vectors (n, T)."""
        rest = self.noise**exponent
        weights = (self.values + self.noise) ** exponent - rest
        return torch.addmm(vectors, self.basis, weights[:, None] * (self.basis.T @ vectors), beta=rest)

    def logdet(self) -> float:
        """Return log det P."""
        n, rank = self.basis.shape
        return float((self.values + self.noise).log().sum()) + (n - rank) * math.log(self.noise)

    def inverse_trace(self) -> float:
        """Return tr P^-1."""
        n, rank = self.basis.shape
        return float((1.0 / (self.values + self.noise)).sum()) + (n - rank) / self.noise


def choose_pivots(kernel: KernelName, x: Tensor, parameters: Hyperparameters, rank: int) -> Tensor:
    """Return the inputs that a pivoted Cholesky factorisation takes first: always where most variance is left.

    Harbrecht, Peters & Schneider (2012), DOI 10.1016/j.apnum.2011.10.001.

    Args:
        kernel: of the function.
        x: (n, D) inputs.
        parameters: hyperparameters.
        rank: how many; fewer come back if these explain all variance.
    """
    n = len(x)
    left = torch.full((n,), parameters.outputscale, dtype=torch.float64, device=x.device)
    rows = torch.empty((min(rank, n), n), dtype=torch.float64, device=x.device)
    pivots: list[int] = []
    for j in range(len(rows)):
        pivot = int(left.argmax())
        most = float(left[pivot])
        if most <= _JITTER * parameters.outputscale:
            break
        row = covariance(kernel, x[pivot : pivot + 1], x, parameters)[0]
        rows[j] = (row - rows[:j, pivot] @ rows[:j]) / math.sqrt(most)
        left.sub_(rows[j] ** 2)
        left[pivot] = 0.0
        pivots.append(pivot)
    return torch.tensor(pivots, dtype=torch.int64, device=x.device)


def precondition(
    kernel: KernelName, x: Tensor, parameters: Hyperparameters, pivots: Tensor
) -> tuple[Preconditioner, Tensor]:
    """Return the preconditioner of these pivots (r,), and the weights (n, r) that give the kernel from its columns.

    The low rank is weights K_PX = K_XP (K_PP + jitter)^-1 K_PX, with P the pivots and X all inputs.
    """
    rows = covariance(kernel, x[pivots], x, parameters)
    own = rows[:, pivots]
    own.diagonal().add_(_JITTER * parameters.outputscale)
    factor = torch.linalg.cholesky(0.5 * (own + own.T))
    rows = torch.linalg.solve_triangular(factor, rows, upper=False)
    basis, upper = torch.linalg.qr(rows.T)
    vectors, singular, _ = torch.linalg.svd(upper)
    weights = torch.linalg.solve_triangular(factor, rows.T, upper=False, left=False)
    return Preconditioner(basis @ vectors, singular**2, parameters.noise), weights
