"""Exact Gaussian-process regression by preconditioned conjugate gradients, without the n x n matrix. Imports torch.

Cholesky's matrices grow with n²; this keeps a preconditioner of n x rank numbers and computes the kernel matrix
again, tile by tile, for every product. Solutions are exact to a tolerance that is checked; the marginal likelihood
and its gradient are estimates from probe vectors (Gardner et al. 2018, arXiv:1809.11165; Wang et al. 2019,
arXiv:1903.08114), with the preconditioner's own share taken exactly (Wenger et al. 2022, arXiv:2107.00243).
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from forceuq.errors import FitError
from forceuq.gp.conjugate_gradients import Run, iterate
from forceuq.gp.kernels import Hyperparameters, KernelName, covariance, product, slope_forms, slopes
from forceuq.gp.preconditioner import Preconditioner, choose_pivots, precondition

_LOGGER = logging.getLogger(__name__)

# Relative residual of the solves of an evaluation. Truncation is then far below the estimate's statistical error.
_EVALUATION_TOLERANCE = 1e-6
# Largest error of a mean, in standard deviations of the noise, that is accepted where rounding is in the way.
_ROUNDED = 0.1
# Numbers in one n x m matrix of a batch of predictions, and the most atoms in a batch.
_BATCH_NUMBERS = 2**24
_BATCH_ATOMS = 1024
# Matrices of n x rank, n x right-hand sides and n x predicted atoms that are held at the worst, and tiles' bytes.
_RANK_MATRICES, _SIDE_MATRICES, _BATCH_MATRICES, _TILES = 6, 9, 8, 2**26


@dataclass(frozen=True)
class Settings:
    """Of the iterations.

    Args:
        rank: of the preconditioner.
        tolerance: largest error of a posterior mean in units of the targets, and of a variance as a share of itself.
        max_iterations: of one solve.
        probes: number of probe vectors.
    """

    rank: int
    tolerance: float
    max_iterations: int
    probes: int


def batch_atoms(n: int) -> int:
    """Return how many atoms are predicted at a time with n training atoms."""
    return max(1, min(_BATCH_ATOMS, _BATCH_NUMBERS // n))


def needed_bytes(n: int, width: int, settings: Settings, outputs: int = 3) -> int:
    """Return the memory that fitting and prediction take with n inputs of some width, bytes."""
    rank = min(settings.rank, n)
    columns = max(
        _RANK_MATRICES * rank + _SIDE_MATRICES * (settings.probes + outputs),
        2 * rank + _BATCH_MATRICES * batch_atoms(n),
    )
    # Inputs are held as read (float32), as standardised, and over the lengthscale.
    return 8 * n * (columns + 4 * width) + min(_TILES, 8 * 8 * n * n)


@dataclass(frozen=True)
class Solution:
    """Of K x = b.

    Args:
        x: (n, T).
        iterations: that it took.
        residual: largest norm of a column of b - K x, as a share of that of b.
        mean_error: no posterior mean is off by more, in units of b.
    """

    x: Tensor
    iterations: int
    residual: float
    mean_error: float


def solve(
    kernel: KernelName,
    x: Tensor,
    preconditioner: Preconditioner,
    sides: Tensor,
    parameters: Hyperparameters,
    settings: Settings,
) -> Solution:
    """Return the solutions of the targets' covariance with sides (n, T), such that posterior means are to tolerance.

    By Cauchy-Schwarz and because no eigenvalue is below the noise, a mean is off by no more than the residual's norm
    times sqrt(outputscale / noise). The residual is computed anew at the end, and iterated on where rounding has
    kept it too large. Where that no longer helps (a large outputscale beside little noise), a tenth of the noise's
    standard deviation is accepted, and told.

    Raises:
        FitError: the tolerance is not reached, nor that.
    """
    multiply = _multiplier(kernel, x, parameters)
    share = math.sqrt(parameters.noise / parameters.outputscale)
    wanted = settings.tolerance * share
    solution, residual, iterations = torch.zeros_like(sides), sides, 0
    while True:
        run = iterate(
            multiply,
            preconditioner,
            residual,
            # Half of it: the other half is for what rounding adds.
            lambda norms, _forms, _active: norms <= 0.5 * wanted,
            settings.max_iterations - iterations,
            solution=True,
        )
        assert run.solution is not None
        solution += run.solution
        iterations += run.iterations
        before = float(residual.norm(dim=0).max())
        residual = sides - multiply(solution)
        largest = float(residual.norm(dim=0).max())
        if largest <= wanted:
            break
        rounded = iterations < settings.max_iterations and not largest < 0.5 * before
        if rounded and largest <= _ROUNDED * math.sqrt(parameters.noise) * share:
            _LOGGER.warning("rounding leaves means known to %.1e, not to %.1e", largest / share, settings.tolerance)
            break
        if rounded or iterations >= settings.max_iterations:
            raise _unconverged(
                len(x), parameters, iterations, f"a residual of {largest:.3g} where {wanted:.3g} is", rounded
            )
    relative = residual.norm(dim=0) / sides.norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    return Solution(solution, iterations, float(relative.max()), largest / share)


@dataclass(frozen=True)
class Estimate:
    """Of the negative log marginal likelihood, with standard errors over the probes.

    Args:
        value: nats.
        gradient: by the logarithms of lengthscale, outputscale and noise.
        value_error: standard error of the value.
        gradient_errors: of the gradient.
        iterations: of the solve.
    """

    value: float
    gradient: tuple[float, float, float]
    value_error: float
    gradient_errors: tuple[float, float, float]
    iterations: int


class ProbedLikelihood:
    """The negative log marginal likelihood as a function of the hyperparameters: fixed pivots, fixed probes.

    So it is deterministic, and smooth up to the tolerance of its solves.

    Args:
        kernel: of the function.
        x: (n, D) inputs.
        y: (n, K) targets.
        start: hyperparameters for which the pivots are chosen.
        settings: of the iterations.
        seed: of the probes.
        probes: (n, S) to use instead of random signs; their mean square must be one.
    """

    def __init__(
        self,
        kernel: KernelName,
        x: Tensor,
        y: Tensor,
        start: Hyperparameters,
        settings: Settings,
        seed: int,
        probes: Tensor | None = None,
    ) -> None:
        self.kernel, self.x, self.y, self.settings = kernel, x, y, settings
        self.pivots = choose_pivots(kernel, x, start, settings.rank)
        if probes is None:
            signs = np.random.default_rng([seed, 1]).integers(0, 2, size=(len(x), settings.probes))
            probes = torch.from_numpy(2.0 * signs - 1.0).to(x.device)
        self.probes = probes
        self.iterations: list[int] = []

    def __call__(self, parameters: Hyperparameters) -> tuple[float, tuple[float, float, float]]:
        """Return the estimate's value and gradient.

        Raises:
            FitError: the solves did not converge.
        """
        found = self.estimate(parameters)
        self.iterations.append(found.iterations)
        return found.value, found.gradient

    def estimate(self, parameters: Hyperparameters) -> Estimate:
        """Return the estimate at some hyperparameters.

        With probes u and z = P^1/2 u: log det K = log det P + E[u^T log(P^-1/2 K P^-1/2) u] by Lanczos quadrature,
        and tr(K^-1 dK) = tr(P^-1 dP) + E[(K^-1 z)^T dK P^-1/2 u - (P^-1/2 u)^T dP P^-1/2 u].

        Raises:
            FitError: the solves did not converge.
        """
        x, y, noise = self.x, self.y, parameters.noise
        (n, outputs), count = y.shape, self.probes.shape[1]
        conditioner, weights = precondition(self.kernel, x, parameters, self.pivots)
        sides = torch.cat([y, conditioner.power(0.5, self.probes)], dim=1)
        wanted = _EVALUATION_TOLERANCE * sides.norm(dim=0)
        run = iterate(
            _multiplier(self.kernel, x, parameters),
            conditioner,
            sides,
            lambda norms, _forms, active: norms <= wanted[active],
            self.settings.max_iterations,
            solution=True,
        )
        assert run.solution is not None
        if not bool((run.norms <= wanted).all()):
            worst = float((run.norms / sides.norm(dim=0)).nan_to_num(nan=0.0).max())
            what = f"a relative residual of {worst:.3g} where {_EVALUATION_TOLERANCE:.3g} is"
            raise _unconverged(n, parameters, run.iterations, what)
        del sides
        alpha, solved = run.solution[:, :outputs], run.solution[:, outputs:]
        whitened = conditioner.power(-0.5, self.probes)
        fit = float(run.forms[:outputs].sum())
        logs = np.array([_quadrature(run, outputs + k, float((self.probes[:, k] ** 2).sum())) for k in range(count)])
        logdets = conditioner.logdet() + logs

        traces = conditioner.inverse_trace() + ((solved - whitened) * whitened).sum(0)
        slope = slope_forms(
            self.kernel, x, torch.cat([alpha, solved], dim=1), torch.cat([alpha, whitened], dim=1), parameters
        )
        theirs, exactly = self._low_rank_slopes(parameters, conditioner, weights, whitened)
        slope_traces = exactly + slope[outputs:] - theirs
        # Per probe: the covariance itself is K_f + noise, so tr(K^-1 K_f) = n - noise tr K^-1.
        samples = 0.5 * outputs * torch.stack([slope_traces, n - noise * traces, noise * traces]).cpu().numpy()
        squares = float((alpha * alpha).sum())
        data = 0.5 * np.array([float(slope[:outputs].sum()), fit - noise * squares, noise * squares])
        by_lengthscale, by_outputscale, by_noise = (samples.mean(axis=1) - data).tolist()
        value = 0.5 * (fit + outputs * (float(logdets.mean()) + n * math.log(2 * math.pi)))
        errors = [_error(each) for each in (0.5 * outputs * logdets, *samples)]
        return Estimate(
            value,
            (by_lengthscale, by_outputscale, by_noise),
            errors[0],
            (errors[1], errors[2], errors[3]),
            run.iterations,
        )

    def _low_rank_slopes(
        self, parameters: Hyperparameters, conditioner: Preconditioner, weights: Tensor, vectors: Tensor
    ) -> tuple[Tensor, float]:
        """Return v^T dP v of vectors (n, S), and tr(P^-1 dP), by log lengthscale.

        With W the weights, d(W K_PX) = dK_XP W^T + W dK_PX - W dK_PP W^T.
        """
        columns = slopes(self.kernel, self.x, self.x[self.pivots], parameters)
        own = columns[self.pivots]
        through = weights.T @ vectors
        forms = 2.0 * ((columns.T @ vectors) * through).sum(0) - (through * (own @ through)).sum(0)
        solved = conditioner.power(-1.0, weights)
        trace = 2.0 * float((solved * columns).sum()) - float(((weights.T @ solved) * own).sum())
        return forms, trace


def predict(
    kernel: KernelName,
    x: Tensor,
    preconditioner: Preconditioner,
    alpha: Tensor,
    at: Tensor,
    parameters: Hyperparameters,
    settings: Settings,
) -> tuple[Tensor, Tensor]:
    """Return the function's posterior mean (m, K) and variance (m,), as ``forceuq.gp.exact.predict`` does.

    A variance after some iterations is too large, by no more than the residual's squared norm over the noise: each
    column goes on until that is the tolerance's share of it (or of a ten-thousandth of the noise).

    Args:
        kernel: of the function.
        x: (n, D) training inputs.
        preconditioner: of their covariance.
        alpha: (n, K) solution of the covariance with the training targets.
        at: (m, D) inputs, m no more than ``batch_atoms``.
        parameters: hyperparameters.
        settings: of the iterations.

    Raises:
        FitError: the tolerance is not reached.
    """
    cross = covariance(kernel, x, at, parameters)
    floor = 1e-4 * parameters.noise

    def finished(norms: Tensor, forms: Tensor, _: Tensor) -> Tensor:
        off = norms**2 / parameters.noise
        return off <= settings.tolerance * (parameters.outputscale - forms).clamp(min=floor)

    multiply = _multiplier(kernel, x, parameters)
    run = iterate(multiply, preconditioner, cross, finished, settings.max_iterations, solution=False)
    open_columns = ~finished(run.norms, run.forms, run.norms)
    if bool(open_columns.any()):
        worst = float(run.norms[open_columns].max())
        what = f"a residual of {worst:.3g} with the covariances of a predicted atom, which is not what"
        raise _unconverged(len(x), parameters, run.iterations, what)
    return cross.T @ alpha, (parameters.outputscale - run.forms).clamp(min=0.0)


def _multiplier(kernel: KernelName, x: Tensor, parameters: Hyperparameters) -> Callable[[Tensor], Tensor]:
    return lambda vectors: product(kernel, x, vectors, parameters).add_(vectors, alpha=parameters.noise)


def _quadrature(run: Run, column: int, square: float) -> float:
    """Return u^T log(P^-1/2 K P^-1/2) u of the column that began with P^1/2 u: Lanczos' matrix from the steps."""
    steps = np.array([alpha[column] for alpha in run.alphas])
    steps = steps[np.isfinite(steps)]
    if not len(steps):
        return 0.0
    ratios = np.array([beta[column] for beta in run.betas[: len(steps) - 1]])
    diagonal = 1.0 / steps
    diagonal[1:] += ratios / steps[:-1]
    values, vectors = eigh_tridiagonal(diagonal, np.sqrt(ratios) / steps[:-1])
    return square * float(vectors[0] ** 2 @ np.log(values))


def _error(samples: NDArray[np.float64]) -> float:
    return float(samples.std(ddof=1) / math.sqrt(len(samples))) if len(samples) > 1 else math.inf


def _unconverged(n: int, parameters: Hyperparameters, iterations: int, what: str, rounded: bool = False) -> FitError:
    more = "" if rounded else "raise `max_cg_iterations` or `preconditioner_rank`, "
    return FitError(
        f"conjugate gradients with {n} atoms at lengthscale {parameters.lengthscale:.4g}, outputscale"
        f" {parameters.outputscale:.4g}, noise {parameters.noise:.4g} reached {what} asked for, in {iterations}"
        f" iterations: {more}set a larger `cg_tolerance` or `min_noise`, or take `solver: cholesky` with more memory"
    )
