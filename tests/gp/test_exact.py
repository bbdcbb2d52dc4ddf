"""The Gaussian process against scikit-learn, GPyTorch and finite differences."""

import math

import gpytorch
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern, WhiteKernel

from forceuq.errors import FitError
from forceuq.gp import kernels
from forceuq.gp.exact import Trace, factorise, nlml, optimise, predict
from forceuq.gp.kernels import Hyperparameters, covariance, median_distance

KERNELS = ("rbf", "matern52")
AT = Hyperparameters(lengthscale=1.7, outputscale=0.8, noise=0.05)


def peer(kernel, parameters):
    own = RBF(parameters.lengthscale) if kernel == "rbf" else Matern(parameters.lengthscale, nu=2.5)
    return ConstantKernel(parameters.outputscale) * own + WhiteKernel(parameters.noise)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4))
    y = np.sin(x @ rng.normal(size=(4, 3))) + 0.1 * rng.normal(size=(60, 3))
    return x, y, rng.normal(size=(25, 4))


@pytest.mark.parametrize("kernel", KERNELS)
def test_prediction_and_likelihood_are_scikit_learns(data, kernel):
    x, y, at = data
    factor = factorise(kernel, torch.from_numpy(x), AT)
    alpha = torch.cholesky_solve(torch.from_numpy(y), factor)
    mean, variance = predict(kernel, torch.from_numpy(x), factor, alpha, torch.from_numpy(at), AT)
    value, _ = nlml(kernel, torch.from_numpy(x), torch.from_numpy(y), AT)
    expected = 0.0
    for k in range(3):
        reference = GaussianProcessRegressor(peer(kernel, AT), optimizer=None, alpha=0.0).fit(x, y[:, k])
        m, s = reference.predict(at, return_std=True)
        np.testing.assert_allclose(mean[:, k], m, rtol=1e-9, atol=1e-11)
        # Theirs is of the noisy target.
        np.testing.assert_allclose(variance + AT.noise, s**2, rtol=1e-9)
        expected -= reference.log_marginal_likelihood_value_
    assert value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_likelihood_is_gpytorchs(data, kernel):
    x, y, _ = map(torch.from_numpy, data)
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    own = gpytorch.kernels.RBFKernel() if kernel == "rbf" else gpytorch.kernels.MaternKernel(nu=2.5)
    scaled = gpytorch.kernels.ScaleKernel(own).double()
    values = torch.tensor([AT.lengthscale, AT.outputscale, AT.noise], dtype=torch.float64)
    own.lengthscale, scaled.outputscale, likelihood.noise = values
    with torch.no_grad():
        matrix = scaled(x).to_dense() + likelihood.noise * torch.eye(len(x))
        reference = torch.distributions.MultivariateNormal(torch.zeros(len(x)).double(), matrix)
        expected = -sum(float(reference.log_prob(y[:, k])) for k in range(3))
    assert nlml(kernel, x, y, AT)[0] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("kernel", KERNELS)
@settings(deadline=None, max_examples=15)
@given(logs=st.tuples(st.floats(-0.7, 1.5), st.floats(-1.5, 1.5), st.floats(-5.0, 0.5)))
def test_gradient_is_that_of_finite_differences(data, kernel, logs):
    x, y = torch.from_numpy(data[0]), torch.from_numpy(data[1])
    _, gradient = nlml(kernel, x, y, Hyperparameters(*map(math.exp, logs)))
    step = 1e-5
    for i in range(3):
        ends = []
        for sign in (1, -1):
            moved = list(logs)
            moved[i] += sign * step
            ends.append(nlml(kernel, x, y, Hyperparameters(*map(math.exp, moved)))[0])
        assert gradient[i] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_covariance_does_not_depend_on_the_blocks(data, kernel, monkeypatch):
    x = torch.from_numpy(data[0])
    whole = covariance(kernel, x, x, AT)
    monkeypatch.setattr(kernels, "_ROWS", 7)
    torch.testing.assert_close(covariance(kernel, x, x, AT), whole, rtol=1e-13, atol=1e-15)
    assert (whole.diagonal() == AT.outputscale).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_known_noise_and_lengthscale_are_found_again(kernel):
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.uniform(-3, 3, size=(400, 2)))
    true = Hyperparameters(lengthscale=1.2, outputscale=1.0, noise=0.04)
    y = factorise(kernel, x, true) @ torch.from_numpy(rng.normal(size=(400, 3)))
    start = Hyperparameters(median_distance(x), 1.0, 0.5)
    found = optimise(kernel, x, y, start, Trace(), max_evaluations=60, min_noise=1e-6)
    assert found.noise == pytest.approx(true.noise, rel=0.1)
    assert found.lengthscale == pytest.approx(true.lengthscale, rel=0.2)
    assert nlml(kernel, x, y, found)[0] <= nlml(kernel, x, y, true)[0]


def test_what_was_evaluated_is_not_evaluated_again(data, monkeypatch):
    x, y = torch.from_numpy(data[0]), torch.from_numpy(data[1])
    start = Hyperparameters(1.0, 1.0, 0.5)
    whole = Trace()
    wanted = optimise("rbf", x, y, start, whole, max_evaluations=20, min_noise=1e-6)
    part = Trace(whole.points[:4], whole.values[:4], whole.gradients[:4])
    calls = []
    monkeypatch.setattr("forceuq.gp.exact.nlml", lambda *a: calls.append(1) or nlml(*a))
    assert optimise("rbf", x, y, start, part, max_evaluations=20, min_noise=1e-6) == wanted
    assert len(calls) == len(whole.points) - 4
    assert part.points == whole.points


def test_failures_say_what_to_do(data):
    x = torch.zeros((5, 2), dtype=torch.float64)
    with pytest.raises(FitError, match=r"kernel matrix of 5 atoms is not positive definite.*min_noise"):
        factorise("rbf", x, Hyperparameters(1.0, 1.0, 0.0))
    y = torch.full((len(data[0]), 3), float("nan"), dtype=torch.float64)
    with pytest.raises(FitError, match="evaluation 1: the NLML of 60 atoms is nan"):
        optimise("rbf", torch.from_numpy(data[0]), y, AT, Trace(), max_evaluations=3, min_noise=1e-6)
