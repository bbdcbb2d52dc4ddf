"""Exact Gaussian-process regression of several outputs that share one kernel. Imports torch.

GPyTorch's exact Gaussian process factorises once an output and keeps several n x n matrices for its gradients.
Outputs that share kernel and noise need one factorisation, and the gradient by three hyperparameters is a closed
form in the inverse, so an evaluation costs n³ floating-point operations and three matrices, exactly.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from forceuq.errors import FitError
from forceuq.gp.kernels import Hyperparameters, KernelName, covariance, slope_product

_LOGGER = logging.getLogger(__name__)
# Matrices of n x n float64 that an evaluation holds at its worst, with what is small beside them.
_MATRICES = 3.3
_NATS = math.log(1e6)
# Of hyperparameters: the NLML, and its derivatives by the logarithms of lengthscale, outputscale and noise.
Likelihood = Callable[[Hyperparameters], tuple[float, tuple[float, float, float]]]


def needed_bytes(n: int) -> int:
    """Return the memory that an evaluation with n inputs takes, bytes."""
    return int(_MATRICES * 8 * n * n)


def factorise(kernel: KernelName, x: Tensor, parameters: Hyperparameters) -> Tensor:
    """Return the lower Cholesky factor (n, n) of the targets' covariance.

    Raises:
        FitError: it is not positive definite in float64.
    """
    matrix = covariance(kernel, x, x, parameters)
    matrix.diagonal().add_(parameters.noise)
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info):
        raise FitError(
            f"the kernel matrix of {len(x)} atoms is not positive definite in float64 at lengthscale"
            f" {parameters.lengthscale:.4g}, outputscale {parameters.outputscale:.4g}, noise {parameters.noise:.4g}:"
            " set a larger `min_noise`"
        )
    return factor


def nlml(
    kernel: KernelName, x: Tensor, y: Tensor, parameters: Hyperparameters
) -> tuple[float, tuple[float, float, float]]:
    """Return the negative log marginal likelihood of all outputs, and its gradient.

    Rasmussen & Williams (2006), eqs. 2.30 and 5.9, summed over the K outputs.

    Args:
        kernel: of the function.
        x: (n, D) inputs, float64.
        y: (n, K) targets, float64.
        parameters: at which.

    Returns:
        The value in nats, and its derivatives by the logarithms of lengthscale, outputscale and noise.

    Raises:
        FitError: the covariance is not positive definite.
    """
    n, outputs = y.shape
    factor = factorise(kernel, x, parameters)
    alpha = torch.cholesky_solve(y, factor)
    value = 0.5 * float((y * alpha).sum())
    value += outputs * (float(factor.diagonal().log().sum()) + 0.5 * n * math.log(2 * math.pi))
    weights = torch.cholesky_inverse(factor)
    del factor
    weights.mul_(outputs).addmm_(alpha, alpha.T, alpha=-1.0)
    trace = float(weights.diagonal().sum())
    by_lengthscale = slope_product(kernel, x, weights, parameters)
    # The covariance itself is K_f + noise; and weights : K follows from K^-1 : K = n and alpha^T K alpha = y^T alpha.
    whole = outputs * n - float((y * alpha).sum())
    by_outputscale = whole - parameters.noise * trace
    return value, (0.5 * by_lengthscale, 0.5 * by_outputscale, 0.5 * parameters.noise * trace)


@dataclass
class Trace:
    """Evaluations of one optimisation, in order: those of an interrupted one are not made again.

    Args:
        points: logarithms of lengthscale, outputscale and noise.
        values: NLML.
        gradients: its derivatives.
        save: called after each new evaluation.
    """

    points: list[list[float]] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    gradients: list[list[float]] = field(default_factory=list)
    save: Callable[[], None] = lambda: None


def optimise(
    kernel: KernelName,
    x: Tensor,
    y: Tensor,
    start: Hyperparameters,
    trace: Trace,
    *,
    max_evaluations: int,
    min_noise: float,
    likelihood: Likelihood | None = None,
) -> Hyperparameters:
    """Return the hyperparameters of the least NLML that L-BFGS-B finds.

    The algorithm is deterministic, so an interrupted optimisation that is begun again asks for the same points:
    the trace answers for those that it holds, and the result has the same bits.

    Args:
        kernel: of the function.
        x: (n, D) inputs.
        y: (n, K) targets.
        start: where from.
        trace: of evaluations, filled here.
        max_evaluations: of the NLML; 0 returns the start.
        min_noise: smallest noise.
        likelihood: gives NLML and gradient at hyperparameters; None is ``nlml``.

    Raises:
        FitError: an NLML that is not finite, or a covariance that is not positive definite.
    """
    if max_evaluations == 0:
        return start
    number = 0

    def evaluate(point: Any) -> tuple[float, Any]:
        nonlocal number
        if number >= max_evaluations:
            raise _EvaluationsUsedUpError
        wanted = [float(value) for value in point]
        if number == len(trace.points) or trace.points[number] != wanted:
            del trace.points[number:], trace.values[number:], trace.gradients[number:]
            there = Hyperparameters(*np.exp(wanted).tolist())
            value, gradient = nlml(kernel, x, y, there) if likelihood is None else likelihood(there)
            if not (math.isfinite(value) and all(map(math.isfinite, gradient))):
                raise FitError(
                    f"evaluation {number + 1}: the NLML of {len(x)} atoms is {value} with gradient {gradient} at"
                    f" log lengthscale, outputscale, noise {wanted}; look at the features and forces"
                )
            trace.points.append(wanted)
            trace.values.append(value)
            trace.gradients.append(list(gradient))
            trace.save()
        number += 1
        # Per number, so that the stopping rule does not depend on the size of the data.
        return trace.values[number - 1] / y.numel(), np.array(trace.gradients[number - 1]) / y.numel()

    at = np.log([start.lengthscale, start.outputscale, start.noise])
    bounds = [(at[0] - _NATS, at[0] + _NATS), (at[1] - _NATS, at[1] + _NATS), (math.log(min_noise), math.log(100.0))]
    try:
        minimize(evaluate, at, jac=True, method="L-BFGS-B", bounds=bounds)
    except _EvaluationsUsedUpError:
        _LOGGER.info("the optimisation ends after %d evaluations", max_evaluations)
    best = trace.points[int(np.argmin(trace.values))]
    return Hyperparameters(*np.exp(best).tolist())


class _EvaluationsUsedUpError(Exception):
    """The evaluations allowed are used up."""


def predict(
    kernel: KernelName, x: Tensor, factor: Tensor, alpha: Tensor, at: Tensor, parameters: Hyperparameters
) -> tuple[Tensor, Tensor]:
    """Return the function's posterior mean (m, K) and variance (m,).

    Rasmussen & Williams (2006), eqs. 2.25 and 2.26.

    Args:
        kernel: of the function.
        x: (n, D) training inputs.
        factor: (n, n) of their covariance, as ``factorise`` makes it.
        alpha: (n, K) solution of the covariance with the training targets.
        at: (m, D) inputs.
        parameters: hyperparameters.

    Raises:
        FitError: a variance that is negative by more than rounding.
    """
    cross = covariance(kernel, x, at, parameters)
    mean = cross.T @ alpha
    whitened = torch.linalg.solve_triangular(factor, cross, upper=False)
    variance = parameters.outputscale - (whitened * whitened).sum(0)
    least = float(variance.min()) if len(variance) else 0.0
    if least < -1e-6 * parameters.outputscale:
        raise FitError(
            f"a posterior variance is {least:.3g}: the kernel matrix is too ill-conditioned; set a larger `min_noise`"
        )
    return mean, variance.clamp(min=0.0)
