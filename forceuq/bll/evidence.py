"""The evidence of the Bayesian linear model, its gradient, and empirical Bayes.

Everything is a function of the sufficient statistics G, C, S and N. Lambda_n = G + Lambda_0 is factorised
after scaling to a unit diagonal, so that neither a feature's units nor a precision's size costs accuracy:
with d = G_dd + lambda_d and A = Lambda_n / sqrt(d d^T),

    log|Lambda_n| - log|Lambda_0| = log|A| + sum_d log(1 + G_dd / lambda_d).

The data term is the paper's form B (A.5), whose value is stationary in B_n: an error in B_n enters squared.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_solve, cholesky
from scipy.linalg.lapack import dtrtri
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from forceuq.bll.statistics import SufficientStatistics
from forceuq.errors import FitError

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

# Bounds of lambda_d / G_dd. At the lower the prior adds 10^-12 of a feature's sum of squares, what keeps the
# Cholesky factor of exactly duplicated features accurate; at the upper a feature keeps 10^-8 of its freedom.
LOWEST_RATIO = 1e-12
HIGHEST_RATIO = 1e8
_EPS = float(np.finfo(np.float64).eps)
# Rows of a triangular matrix that LAPACK inverts at a time.
_BLOCK = 64
_FIXED_POINT_STEPS = 10
# What the precisions at the first start are multiplied by at the others.
_WEAKER_STARTS = (1e-2, 1e-4, 1e-6, 1e-8)
_RESTARTS = 4
# Steps along the gradient between them, and by how many powers of two a step may be shorter or longer than it.
_DESCENTS = 10
_DOUBLINGS = 10


class _Solution(NamedTuple):
    mean: Matrix  # B_n (D, K)
    scatter: Matrix  # R^T R + B_n^T Lambda_0 B_n (K, K)
    log_det: float  # log|Lambda_n| - log|Lambda_0|
    gamma: Vector  # (D,) 1 - lambda_d (Lambda_n^-1)_dd: how far the data determine each feature's weights


def factorise(gram: Matrix, precision: Vector) -> tuple[Matrix, Vector]:
    """Return L (D, D) lower and s (D,) with ``Lambda_n = diag(s) L L^T diag(s)``, L L^T of unit diagonal.

    Raises:
        FitError: Lambda_n is not positive definite to rounding.
    """
    scale = np.sqrt(gram.diagonal() + precision)
    scaled = gram / scale[:, None] / scale
    np.fill_diagonal(scaled, 1.0)
    try:
        # Symmetric: its transpose is what LAPACK takes as it lies in memory.
        return cholesky(scaled.T, lower=True, overwrite_a=True, check_finite=False), scale
    except LinAlgError as error:
        raise FitError(
            f"Lambda_n is not positive definite ({error}); the smallest lambda / (Phi^T Phi)_dd is"
            f" {np.min(precision / np.maximum(gram.diagonal(), precision)):.1e}: features are collinear to"
            f" rounding and the prior is too weak (at least {LOWEST_RATIO:.0e})"
        ) from error


def posterior_mean(factor: Matrix, scale: Vector, cross: Matrix) -> Matrix:
    """Return B_n = Lambda_n^-1 C (eq. 5) of ``factorise``'s factor, (D, K)."""
    mean: Matrix = cho_solve((factor, True), cross / scale[:, None], check_finite=False) / scale[:, None]
    return mean


def _triangular_inverse(factor: Matrix) -> Matrix:
    """Return L^-1 of a lower triangular L, (D, D), block by block: most of it by matrix products.

    In one thread LAPACK's own takes half as long again at 256 features, and as long at 1,024.
    """
    inverse = np.zeros(factor.shape)
    for start in range(0, len(factor), _BLOCK):
        rows = slice(start, start + _BLOCK)
        inverse[rows, rows], _ = dtrtri(factor[rows, rows], lower=1)
        for left in range(0, start, _BLOCK):
            columns = slice(left, left + _BLOCK)
            inverse[rows, columns] = factor[rows, left:start] @ inverse[left:start, columns]
        inverse[rows, :start] = -inverse[rows, rows] @ inverse[rows, :start]
    return inverse


def _solve(statistics: SufficientStatistics, log_precision: Vector) -> _Solution:
    precision = np.exp(log_precision)
    gram, cross = statistics.gram, statistics.cross
    factor, scale = factorise(gram, precision)
    mean = posterior_mean(factor, scale, cross)
    fit = mean.T @ cross
    scatter = statistics.target - fit - fit.T + mean.T @ (gram @ mean) + mean.T @ (precision[:, None] * mean)
    # (Lambda_n^-1)_dd is the squared norm of a column of L^-1, scaled back.
    inverse = _triangular_inverse(factor)
    variance = np.einsum("ij,ij->j", inverse, inverse) / scale**2
    return _Solution(
        mean,
        0.5 * (scatter + scatter.T),
        float(2.0 * np.log(factor.diagonal()).sum() + np.log1p(gram.diagonal() / precision).sum()),
        1.0 - precision * variance,
    )


def _noise_factor(noise: Matrix, what: str) -> Matrix:
    try:
        factor: Matrix = cholesky(noise, lower=True)
    except (LinAlgError, ValueError) as error:
        raise FitError(f"{what} is not positive definite ({error}): {noise.tolist()}") from error
    return factor


def _precision_gradient(solution: _Solution, precision: Vector, noise_factor: Matrix) -> Vector:
    targets = len(noise_factor)
    weights = np.einsum("dk,kd->d", solution.mean, cho_solve((noise_factor, True), solution.mean.T))
    gradient: Vector = 0.5 * (precision * weights - targets * solution.gamma)
    return gradient


def noise_covariance(parameters: Matrix) -> Matrix:
    """Return Sigma_e = T T^T, (K, K); T is lower triangular, its diagonal given by its logarithm.

    Args:
        parameters: (K, K); what lies above the diagonal is ignored.
    """
    factor = np.tril(parameters, -1) + np.diag(np.exp(parameters.diagonal()))
    noise: Matrix = factor @ factor.T
    return noise


def noise_parameters(noise: Matrix) -> Matrix:
    """Return the parameters from which ``noise_covariance`` makes ``noise``."""
    factor = _noise_factor(noise, "Sigma_e")
    parameters: Matrix = np.tril(factor, -1) + np.diag(np.log(factor.diagonal()))
    return parameters


def nlml(statistics: SufficientStatistics, log_precision: Vector, parameters: Matrix) -> tuple[float, Vector, Matrix]:
    """Return the negative log marginal likelihood (eq. 7; eq. 30 with its constant) and its gradient.

    Args:
        statistics: of the data.
        log_precision: (D,) log lambda.
        parameters: (K, K) of Sigma_e, as ``noise_covariance`` takes them.

    Returns:
        The value in nats; its derivatives by ``log_precision`` (D,) and by ``parameters`` (K, K), zero above
        the diagonal.

    Raises:
        FitError: Lambda_n is not positive definite to rounding.
    """
    solution = _solve(statistics, log_precision)
    n, k = statistics.n, statistics.targets
    factor = np.tril(parameters, -1) + np.diag(np.exp(parameters.diagonal()))
    noise_inverse = cho_solve((factor, True), np.eye(k))
    value = (
        0.5 * n * k * np.log(2.0 * np.pi)
        + n * parameters.diagonal().sum()
        + 0.5 * k * solution.log_det
        + 0.5 * float(np.sum(noise_inverse * solution.scatter))
    )
    by_noise = 0.5 * (n * noise_inverse - noise_inverse @ solution.scatter @ noise_inverse)
    by_parameters = np.tril(2.0 * by_noise @ factor)
    by_parameters[np.diag_indices(k)] *= factor.diagonal()
    return float(value), _precision_gradient(solution, np.exp(log_precision), factor), by_parameters


def profiled_nlml(statistics: SufficientStatistics, log_precision: Vector) -> tuple[float, Vector, Matrix]:
    """Return eq. 7 at its stationary Sigma_e (eq. 10), its gradient by ``log_precision``, and that Sigma_e.

    Raises:
        FitError: Lambda_n or the stationary Sigma_e is not positive definite to rounding.
    """
    value, gradient, noise, _ = _profiled(statistics, log_precision)
    return value, gradient, noise


def _profiled(statistics: SufficientStatistics, log_precision: Vector) -> tuple[float, Vector, Matrix, _Solution]:
    solution = _solve(statistics, log_precision)
    n, k = statistics.n, statistics.targets
    spread = statistics.target.diagonal()
    lost = solution.scatter.diagonal() <= 100.0 * _EPS * spread
    if lost.any():
        component = int(np.argmax(lost))
        left = solution.scatter[component, component]
        raise FitError(
            f"target component {component} is reproduced to rounding ({left:.1e} of {spread[component]:.1e}"
            f" is left): there is nothing left for Sigma_e to describe"
        )
    noise = solution.scatter / n
    factor = _noise_factor(noise, "the stationary Sigma_e (eq. 10)")
    value = 0.5 * n * k * (np.log(2.0 * np.pi) + 1.0) + n * np.log(factor.diagonal()).sum() + 0.5 * k * solution.log_det
    return float(value), _precision_gradient(solution, np.exp(log_precision), factor), noise, solution


@dataclass(frozen=True)
class EvidenceFit:
    """Hyperparameters that maximise the evidence.

    Args:
        precision: (D,) lambda, the diagonal of Lambda_0.
        noise: (K, K) Sigma_e, (eV/Å)² for forces.
        nlml: eq. 7 there, nats.
        effective_parameters: sum of gamma_d, of D at most: how many weights a target the data determine.
        gradient_norm: largest derivative by the logarithm of a precision that is not held by a bound.
        evaluations: of the evidence.
        at_lower: precisions that lie at ``LOWEST_RATIO`` of the feature's sum of squares.
        at_upper: precisions that lie at ``HIGHEST_RATIO`` of it.
        unused: features that are zero in every row; a precision of its own is then that of an average feature at
            the start.
        trace: eq. 7 at every step of the optimiser.
    """

    precision: Vector
    noise: Matrix
    nlml: float
    effective_parameters: float
    gradient_norm: float
    evaluations: int
    at_lower: int
    at_upper: int
    unused: int
    trace: tuple[float, ...]


def _check(statistics: SufficientStatistics) -> None:
    for name, array in (
        ("Phi^T Phi", statistics.gram),
        ("Phi^T Y", statistics.cross),
        ("Y^T Y", statistics.target),
    ):
        if not np.isfinite(array).all():
            raise FitError(f"{name} holds a value that is not finite")
    if statistics.n <= statistics.targets:
        raise FitError(
            f"{statistics.n} rows cannot determine a {statistics.targets} x {statistics.targets} Sigma_e: the"
            f" evidence has no maximum with N <= K; fit to more atoms"
        )
    zero = np.flatnonzero(statistics.target.diagonal() == 0.0)
    if len(zero):
        raise FitError(f"target component {zero[0]} is zero in every row: its noise variance would be zero")


def fit_evidence(statistics: SufficientStatistics, isotropic: bool = False) -> EvidenceFit:
    """Maximise the evidence over Lambda_0 and Sigma_e (empirical Bayes, section 2).

    Sigma_e is always at its stationary value (eq. 10). Lambda_0 starts at each feature's mean square, takes a
    few fixed-point steps ``lambda_d = K gamma_d / (B_n Sigma_e^-1 B_n^T)_dd`` (Tipping 2001,
    https://jmlr.org/papers/v1/tipping01a.html) and then L-BFGS-B on log lambda, within the bounds
    ``LOWEST_RATIO`` and ``HIGHEST_RATIO`` on lambda_d / (Phi^T Phi)_dd. Such a start shrinks away what hardly counts
    in the features' mean squares (few rows and a large mean, or the weak directions of collinear features), and
    the search would end where nothing is explained: it goes on from a weaker prior instead where the evidence there
    is already higher than what the steps came to. With many rows the evidence is known
    to about N * 1e-16, with nearly collinear features far less well, and a line search can fail on that before its own
    tolerance is met: it starts again from where the slope alone says that the evidence is higher, and what is
    required is a small gradient, wherever the optimiser stopped.

    Args:
        statistics: of the data.
        isotropic: one lambda for all features, as weight decay has it (MacKay 1992,
            https://doi.org/10.1162/neco.1992.4.3.415), where the paper has one each. Its bounds are in units of the
            largest (Phi^T Phi)_dd.

    Raises:
        FitError: too few rows, values that are not finite, targets reproduced to rounding, no convergence.
    """
    # Linear algebra of this size is faster in one thread, NumPy's and SciPy's threads being in each other's way; and
    # what is found is the same for any number.
    with threadpool_limits(1):
        return _fit_evidence(statistics, isotropic)


def _fit_evidence(statistics: SufficientStatistics, isotropic: bool) -> EvidenceFit:
    _check(statistics)
    k = statistics.targets
    square = statistics.gram.diagonal()
    used = np.flatnonzero(square > 0.0)
    mean_square = square[used].mean() if len(used) else 1.0 * statistics.n
    log_precision = np.full(statistics.width, np.log(mean_square / statistics.n))
    isotropic = isotropic and len(used) > 0
    # What a precision, relative to the bounds' unit, and a derivative by its logarithm are of.
    log_square = np.log(square.max(keepdims=True) if isotropic else square[used])
    shared = np.arange(statistics.width) if isotropic else used
    start = np.log(mean_square / statistics.n) - log_square if isotropic else np.full(len(used), -np.log(statistics.n))

    def each(values: Vector) -> Vector:
        return values.sum(keepdims=True) if isotropic else values[used]

    low, high = np.log(LOWEST_RATIO), np.log(HIGHEST_RATIO)
    trace: list[float] = []
    evaluations = 0

    def at(ratio: Vector) -> tuple[float, Vector, Matrix, _Solution]:
        nonlocal evaluations
        evaluations += 1
        log_precision[shared] = ratio + log_square
        value, gradient, noise, solution = _profiled(statistics, log_precision)
        return value, each(gradient), noise, solution

    def free(ratio: Vector, gradient: Vector) -> float:
        held = ((ratio <= low) & (gradient > 0.0)) | ((ratio >= high) & (gradient < 0.0))
        return float(np.abs(np.where(held, 0.0, gradient)).max(initial=0.0))

    def downhill(ratio: Vector) -> Vector:
        # By the slope alone: collinear features leave the value uncertain by far more than the gradient.
        for _ in range(_DESCENTS):
            gradient = at(ratio)[1]
            farthest = ratio
            for doubling in range(-_DOUBLINGS, _DOUBLINGS):
                further = np.clip(ratio - 2.0**doubling * gradient, low, high)
                if at(further)[1] @ (further - ratio) >= 0.0:
                    break
                farthest = further
            ratio = farthest
        return ratio

    def settled(ratio: Vector) -> tuple[Vector, float]:
        value, gradient, _, solution = at(ratio)
        trace.append(value)
        for _ in range(_FIXED_POINT_STEPS):
            # From the gradient: precision * weights = 2 gradient + K gamma.
            gamma = np.maximum(each(solution.gamma), _EPS)
            weights = np.maximum(2.0 * gradient + k * each(solution.gamma), _EPS * gamma)
            proposal = np.clip(ratio + np.log(k * gamma / weights), low, high)
            try:
                new_value, gradient, _, solution = at(proposal)
            except FitError:  # too far
                break
            if not new_value < value:
                break
            ratio, value = proposal, new_value
            trace.append(value)
        return ratio, value

    def searched(ratio: Vector) -> EvidenceFit:
        value, gradient, noise, solution = at(ratio)
        tolerance = k * max(1e-3, float(np.sqrt(statistics.width * _EPS * max(abs(value), 1.0))))
        for restart in range(_RESTARTS):
            if restart and free(ratio, gradient) > tolerance:
                ratio = downhill(ratio)
                value, gradient, noise, solution = at(ratio)
            if free(ratio, gradient) <= tolerance:
                break
            result = minimize(  # type: ignore[call-overload]
                lambda x: at(x)[:2], ratio, jac=True, method="L-BFGS-B", bounds=[(low, high)] * len(ratio),
                callback=lambda intermediate_result: trace.append(float(intermediate_result.fun)),
                options={"maxiter": 2000, "maxfun": 4000, "maxcor": 20, "ftol": 0.0, "gtol": 0.5 * tolerance},
            )  # fmt: skip
            ratio = np.asarray(result.x)
            value, gradient, noise, solution = at(ratio)
        if not (gradient_norm := free(ratio, gradient)) <= tolerance:
            raise FitError(
                f"the evidence was not maximised: after {evaluations} evaluations a derivative by log lambda is"
                f" {gradient_norm:.2e}, tolerance {tolerance:.1e}"
            )
        return EvidenceFit(
            precision=np.exp(log_precision),
            noise=noise,
            nlml=value,
            effective_parameters=float(solution.gamma[used].sum()),
            gradient_norm=gradient_norm,
            evaluations=evaluations,
            at_lower=int(np.sum(ratio <= low)),
            at_upper=int(np.sum(ratio >= high)),
            unused=statistics.width - len(used),
            trace=tuple(trace),
        )

    starts = [settled(np.clip(start, low, high))]
    for weaker in _WEAKER_STARTS:
        ratio = np.clip(start + np.log(weaker), low, high)
        try:
            if at(ratio)[0] < starts[-1][1]:
                starts.append(settled(ratio))
        except FitError:  # with so weak a prior rounding is all that is left of Lambda_n or of the targets
            break
    failures: list[FitError] = []
    for ratio, _ in reversed(starts):
        try:
            fit = searched(ratio)
        except FitError as error:
            # Rounding may be in the way from here, and not from an earlier start to as high an evidence.
            failures.append(error)
            continue
        if not failures or fit.nlml <= starts[-1][1]:
            return fit
    raise failures[0]


def effective_parameters(statistics: SufficientStatistics, precision: Vector) -> float:
    """Return sum_d (1 - lambda_d (Lambda_n^-1)_dd): how many weights a target the data determine, of D."""
    return float(_solve(statistics, np.log(precision)).gamma.sum())
