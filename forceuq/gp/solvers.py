"""Which solver an exact Gaussian process takes, and its posterior by either. Imports torch."""

import os
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from forceuq.errors import FitError
from forceuq.gp import exact, iterative
from forceuq.gp.kernels import Hyperparameters, KernelName
from forceuq.gp.preconditioner import Preconditioner, choose_pivots, precondition

Solver = Literal["cholesky", "cg"]
_GIB = 2**30
# Atoms that are predicted at a time from a Cholesky factor.
_ATOMS = 2048


def choose(
    wanted: Literal["auto", "cholesky", "cg"],
    n: int,
    width: int,
    settings: iterative.Settings,
    max_memory_gb: float,
    subset: int,
    device: str,
) -> Solver:
    """Return the solver for n training atoms, before anything is computed.

    Args:
        wanted: that, or auto: Cholesky where the memory does for it.
        n: training atoms.
        width: features an atom.
        settings: of conjugate gradients.
        max_memory_gb: GiB allowed; no more than the machine or its GPU has.
        subset: atoms on which the hyperparameters are found first, by Cholesky.
        device: cpu or cuda.

    Raises:
        FitError: the memory does not do for it.
    """
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device == "cuda":
        there = torch.cuda.get_device_properties(0).total_memory
    allowed = min(max_memory_gb * _GIB, there)
    cholesky = exact.needed_bytes(n)
    cg = max(iterative.needed_bytes(n, width, settings), exact.needed_bytes(min(n, subset)))
    if wanted != "cg" and cholesky <= allowed:
        return "cholesky"
    if wanted != "cholesky" and cg <= allowed:
        return "cg"
    needed, way_out = cg, "a smaller `preconditioner_rank` or `subset`, "
    if wanted == "cholesky":
        needed, way_out = cholesky, f"`solver: cg` ({cg / _GIB:.1f} GiB), " if cg <= allowed else ""
    raise FitError(
        f"an exact Gaussian process of {n} training atoms takes {needed / _GIB:.1f} GiB, and"
        f" {allowed / _GIB:.1f} GiB are allowed here (max_memory_gb {max_memory_gb:g}, machine"
        f" {there / _GIB:.1f}): take {way_out}fewer training structures, more memory, or another method"
    )


class Posterior(Protocol):
    """What is known of the training atoms' covariance, and what follows from it."""

    def prepare(self, x: Tensor) -> None:
        """Factorise the covariance, or its preconditioner, of training inputs (n, D)."""

    def solve(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Return the solution (n, K) of the covariance with targets (n, K), and what the report says of it."""

    def atoms(self, n: int) -> int:
        """Return how many atoms are predicted at a time with n training atoms."""

    def predict(self, x: Tensor, alpha: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean (m, K) and variance (m,) at inputs (m, D)."""


def posterior(
    solver: Solver, kernel: KernelName, parameters: Hyperparameters, settings: iterative.Settings
) -> Posterior:
    """Return the posterior by a solver."""
    if solver == "cg":
        return _ByConjugateGradients(kernel, parameters, settings)
    return _ByCholesky(kernel, parameters)


class _ByCholesky:
    def __init__(self, kernel: KernelName, parameters: Hyperparameters) -> None:
        self._kernel: KernelName = kernel
        self._parameters = parameters
        self._factor: Tensor

    def prepare(self, x: Tensor) -> None:
        self._factor = exact.factorise(self._kernel, x, self._parameters)

    def solve(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Any]]:  # noqa: ARG002 - as the other one
        return torch.cholesky_solve(y, self._factor), {}

    def atoms(self, n: int) -> int:  # noqa: ARG002 - as the other one
        return _ATOMS

    def predict(self, x: Tensor, alpha: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        return exact.predict(self._kernel, x, self._factor, alpha, at, self._parameters)


class _ByConjugateGradients:
    def __init__(self, kernel: KernelName, parameters: Hyperparameters, settings: iterative.Settings) -> None:
        self._kernel: KernelName = kernel
        self._parameters, self._settings = parameters, settings
        self._preconditioner: Preconditioner

    def prepare(self, x: Tensor) -> None:
        pivots = choose_pivots(self._kernel, x, self._parameters, self._settings.rank)
        self._preconditioner, _ = precondition(self._kernel, x, self._parameters, pivots)

    def solve(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Any]]:
        found = iterative.solve(self._kernel, x, self._preconditioner, y, self._parameters, self._settings)
        rank = self._preconditioner.basis.shape[1]
        told = {"iterations": found.iterations, "residual": found.residual, "mean_error": found.mean_error}
        return found.x, {"cg": {**told, "rank": rank}}

    def atoms(self, n: int) -> int:
        return iterative.batch_atoms(n)

    def predict(self, x: Tensor, alpha: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        return iterative.predict(self._kernel, x, self._preconditioner, alpha, at, self._parameters, self._settings)
