"""Conjugate gradients against dense matrices, Cholesky's evidence and prediction, and GPyTorch."""

import gpytorch
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forceuq.errors import FitError
from forceuq.gp import exact, iterative, kernels
from forceuq.gp.kernels import Hyperparameters, covariance
from forceuq.gp.preconditioner import choose_pivots, precondition
from forceuq.gp.solvers import choose

KERNELS = ("rbf", "matern52")
AT = Hyperparameters(lengthscale=1.7, outputscale=0.8, noise=0.003)
SETTINGS = iterative.Settings(rank=12, tolerance=1e-8, max_iterations=400, probes=8)
N = 60


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 4))
    y = np.sin(x @ rng.normal(size=(4, 3))) + 0.1 * rng.normal(size=(N, 3))
    return tuple(map(torch.from_numpy, (x, y, rng.normal(size=(25, 4)))))


@pytest.fixture(autouse=True)
def several_tiles(monkeypatch):
    monkeypatch.setattr(kernels, "_TILE_ROWS", {"cpu": 16})


def dense(kernel, x, parameters=AT):
    return covariance(kernel, x, x, parameters) + parameters.noise * torch.eye(len(x), dtype=torch.float64)


def conditioned(kernel, x, parameters=AT, rank=SETTINGS.rank):
    return precondition(kernel, x, parameters, choose_pivots(kernel, x, parameters, rank))[0]


@pytest.mark.parametrize("kernel", KERNELS)
def test_products_and_slopes_are_those_of_the_dense_matrix(data, kernel):
    x, y, _ = data
    matrix = covariance(kernel, x, x, AT)
    torch.testing.assert_close(kernels.product(kernel, x, y, AT), matrix @ y, rtol=1e-12, atol=1e-12)
    slope = kernels.slopes(kernel, x, x, AT)
    torch.testing.assert_close(
        kernels.slope_forms(kernel, x, y, y, AT), (y * (slope @ y)).sum(0), rtol=1e-12, atol=1e-12
    )
    step = 1e-5
    ends = [covariance(kernel, x, x, Hyperparameters(1.7 * np.exp(s), 0.8, 0.003)) for s in (step, -step)]
    off = ~torch.eye(N, dtype=torch.bool)
    torch.testing.assert_close(slope[off], ((ends[0] - ends[1]) / (2 * step))[off], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_preconditioners_powers_are_of_one_matrix(data, kernel):
    x, y, _ = data
    found = conditioned(kernel, x)
    matrix = found.power(1.0, torch.eye(N, dtype=torch.float64))
    pivots = choose_pivots(kernel, x, AT, SETTINGS.rank)
    # At the pivots it is the kernel's own columns.
    torch.testing.assert_close(matrix[:, pivots], dense(kernel, x)[:, pivots], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.power(-1.0, matrix @ y), y, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.power(0.5, found.power(0.5, y)), matrix @ y, rtol=1e-8, atol=1e-8)
    assert found.logdet() == pytest.approx(float(torch.logdet(matrix)), rel=1e-9)
    assert found.inverse_trace() == pytest.approx(float(torch.linalg.inv(matrix).trace()), rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(
    kernel=st.sampled_from(KERNELS),
    lengthscale=st.floats(0.3, 10.0),
    noise=st.floats(1e-4, 1.0),
    rank=st.integers(1, N),
    seed=st.integers(0, 100),
)
def test_solutions_and_predictions_are_choleskys(kernel, lengthscale, noise, rank, seed):
    rng = np.random.default_rng(seed)
    x, y, at = (torch.from_numpy(rng.normal(size=shape)) for shape in ((N, 4), (N, 3), (9, 4)))
    parameters = Hyperparameters(lengthscale, 0.8, noise)
    own = iterative.Settings(rank, 1e-7, 2000, 1)
    conditioner = conditioned(kernel, x, parameters, rank)
    found = iterative.solve(kernel, x, conditioner, y, parameters, own)
    factor = exact.factorise(kernel, x, parameters)
    alpha = torch.cholesky_solve(y, factor)
    wanted = exact.predict(kernel, x, factor, alpha, at, parameters)
    mean, variance = iterative.predict(kernel, x, conditioner, found.x, at, parameters, own)
    assert float((mean - wanted[0]).abs().max()) <= 1e-7
    assert float(((variance - wanted[1]) / wanted[1].clamp(min=1e-4 * noise)).abs().max()) <= 1e-6


@pytest.mark.parametrize("kernel", KERNELS)
def test_with_a_probe_for_every_direction_the_likelihood_is_exact(data, kernel):
    x, y, _ = data
    probes = np.sqrt(N) * torch.eye(N, dtype=torch.float64)
    found = iterative.ProbedLikelihood(kernel, x, y, AT, SETTINGS, 0, probes)
    for at in (AT, Hyperparameters(2.5, 0.5, 0.02)):
        value, gradient = exact.nlml(kernel, x, y, at)
        estimate = found.estimate(at)
        assert estimate.value == pytest.approx(value, rel=1e-6)
        assert estimate.gradient == pytest.approx(gradient, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_few_probes_are_right_within_their_own_error(data, kernel):
    x, y, _ = data
    value, gradient = exact.nlml(kernel, x, y, AT)
    off = []
    for seed in range(12):
        found = iterative.ProbedLikelihood(kernel, x, y, AT, SETTINGS, seed).estimate(AT)
        errors = (found.value_error, *found.gradient_errors)
        off.append((np.array([found.value, *found.gradient]) - [value, *gradient]) / errors)
    # Each is about Student's t of seven degrees of freedom: its mean over 12 seeds is within 0.34 of zero by one sigma.
    assert np.abs(np.mean(off, axis=0)).max() < 4 * np.sqrt(7 / 5 / 12)
    assert np.abs(off).max() < 8


def test_the_likelihood_is_gpytorchs(data):
    x, y, _ = data
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    own = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel()).double()
    likelihood.noise, own.outputscale, own.base_kernel.lengthscale = AT.noise, AT.outputscale, AT.lengthscale
    joint = gpytorch.distributions.MultivariateNormal(torch.zeros(N, dtype=torch.float64), own(x))
    with gpytorch.settings.fast_computations(False, False, False), torch.no_grad():
        expected = -sum(float(likelihood(joint).log_prob(y[:, k])) for k in range(3))
    probes = np.sqrt(N) * torch.eye(N, dtype=torch.float64)
    found = iterative.ProbedLikelihood("rbf", x, y, AT, SETTINGS, 0, probes)(AT)
    assert found[0] == pytest.approx(expected, rel=1e-5)


def test_what_does_not_converge_is_an_error(data):
    x, y, at = data
    few = iterative.Settings(1, 1e-8, 2, 2)
    conditioner = conditioned("rbf", x, rank=1)
    alpha = torch.cholesky_solve(y, exact.factorise("rbf", x, AT))
    for action in (
        lambda: iterative.solve("rbf", x, conditioner, y, AT, few),
        lambda: iterative.predict("rbf", x, conditioner, alpha, at, AT, few),
        lambda: iterative.ProbedLikelihood("rbf", x, y, AT, few, 0)(AT),
    ):
        with pytest.raises(FitError, match=r"60 atoms at lengthscale 1\.7.*in 2 iterations: raise `max_cg_iterations`"):
            action()


@pytest.mark.parametrize("kernel", KERNELS)
def test_where_rounding_is_in_the_way_the_bound_is_told(kernel):
    """Forces that are linear in the features take the lengthscale and the outputscale to where K x rounds."""
    rng = np.random.default_rng(0)
    x, at = (torch.from_numpy(rng.normal(size=(n, 4))) for n in (200, 50))
    weights = torch.from_numpy(rng.normal(size=(4, 3)))
    far = Hyperparameters(lengthscale=400.0, outputscale=6000.0, noise=9e-4)
    y = x @ weights + 0.03 * torch.from_numpy(rng.normal(size=(200, 3)))
    wanted = iterative.Settings(rank=12, tolerance=1e-9, max_iterations=400, probes=8)
    conditioner = conditioned(kernel, x, far)
    found = iterative.solve(kernel, x, conditioner, y, far, wanted)
    assert wanted.tolerance < found.mean_error < 0.1 * far.noise**0.5
    mean, _ = iterative.predict(kernel, x, conditioner, found.x, at, far, wanted)
    factor = exact.factorise(kernel, x, far)
    expected, _ = exact.predict(kernel, x, factor, torch.cholesky_solve(y, factor), at, far)
    assert (mean - expected).norm(dim=1).max() < 2 * found.mean_error
    too_far = Hyperparameters(lengthscale=4e4, outputscale=6e7, noise=9e-4)
    with pytest.raises(FitError, match="iterations: set a larger `cg_tolerance` or `min_noise`"):
        iterative.solve(kernel, x, conditioned(kernel, x, too_far), y, too_far, wanted)


def test_the_solver_follows_the_memory():
    rank = iterative.Settings(rank=500, tolerance=1e-6, max_iterations=10, probes=16)

    def chosen(wanted, n, gib):
        return choose(wanted, n, 256, rank, gib, 2000, "cpu")

    assert chosen("auto", 15_000, 6.0) == "cholesky"
    assert chosen("cg", 15_000, 6.0) == "cg"
    assert chosen("auto", 30_000, 6.0) == "cg"
    with pytest.raises(FitError, match=r"of 30000 training atoms takes 22\.1 GiB.*take `solver: cg` \(\d\.\d GiB\)"):
        chosen("cholesky", 30_000, 6.0)
    with pytest.raises(FitError, match=r"smaller `preconditioner_rank` or `subset`, fewer training"):
        chosen("auto", 1_000_000, 6.0)
