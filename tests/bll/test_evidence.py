import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, ortho_group
from sklearn.linear_model import ARDRegression, BayesianRidge
from threadpoolctl import threadpool_limits

from forceuq.bll import evidence
from forceuq.bll.evidence import (
    HIGHEST_RATIO,
    LOWEST_RATIO,
    _profiled,
    effective_parameters,
    fit_evidence,
    nlml,
    noise_covariance,
    noise_parameters,
    profiled_nlml,
)
from forceuq.bll.posterior import Posterior
from forceuq.bll.statistics import SufficientStatistics, accumulate
from forceuq.errors import FitError


def random_hyperparameters(d, k, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=d) * 2, np.tril(rng.normal(size=(k, k)) * 0.7)


def dense(phi, y, log_precision, parameters):
    """The evidence and its gradient from the N K x N K covariance of vec(Y), eq. 2 with eq. 4 integrated out."""
    n, k = y.shape
    precision, noise = np.exp(log_precision), noise_covariance(parameters)
    rows = np.eye(n) + phi / precision @ phi.T
    vector = y.T.ravel()  # columns stacked
    covariance = np.kron(noise, rows)
    value = -multivariate_normal(np.zeros(n * k), covariance).logpdf(vector)
    inverse = np.linalg.inv(covariance)
    alpha = inverse @ vector
    weight = 0.5 * (inverse - np.outer(alpha, alpha))
    by_precision = np.array(
        [np.sum(weight * np.kron(noise, -np.outer(phi[:, i], phi[:, i]) / precision[i])) for i in range(len(precision))]
    )
    by_parameters = np.zeros((k, k))
    factor = np.tril(parameters, -1) + np.diag(np.exp(np.diag(parameters)))
    for i in range(k):
        for j in range(i + 1):
            change = np.zeros((k, k))
            change[i, j] = factor[i, i] if i == j else 1.0
            by_parameters[i, j] = np.sum(weight * np.kron(change @ factor.T + factor @ change.T, rows))
    return value, by_precision, by_parameters


@pytest.mark.parametrize(("n", "d", "k"), [(12, 4, 3), (5, 9, 3), (20, 6, 1), (7, 2, 2), (9, 150, 2)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_value_and_gradient_against_the_dense_normal(problem, n, d, k, seed):
    phi, y, statistics = problem(n, d, k, seed)
    log_precision, parameters = random_hyperparameters(d, k, seed)
    value, by_precision, by_parameters = nlml(statistics, log_precision, parameters)
    expected = dense(phi, y, log_precision, parameters)
    assert value == pytest.approx(expected[0], rel=1e-10)
    for found, known in zip((by_precision, by_parameters), expected[1:], strict=True):
        np.testing.assert_allclose(found, known, rtol=1e-8, atol=1e-8 * np.abs(known).max())


def difference(function, x, h=1e-2):
    """Eighth-order central difference of a scalar function along every element of x."""
    coefficients = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = h
        gradient[index] = (
            sum(c * (function(x + i * step) - function(x - i * step)) for i, c in coefficients.items()) / h
        )
    return gradient


@pytest.mark.parametrize(("n", "d"), [(300, 20), (15, 20)])
def test_gradient_against_finite_differences(problem, n, d):
    _, _, statistics = problem(n, d)
    log_precision, parameters = random_hyperparameters(d, 3, 5)
    _, by_precision, by_parameters = nlml(statistics, log_precision, parameters)
    known = difference(lambda x: nlml(statistics, x, parameters)[0], log_precision)
    np.testing.assert_allclose(by_precision, known, rtol=1e-8, atol=1e-8 * np.abs(known).max())
    known = difference(lambda x: nlml(statistics, log_precision, x)[0], parameters)
    np.testing.assert_allclose(by_parameters, known, rtol=1e-8, atol=1e-8 * np.abs(known).max())
    _, profiled, _ = profiled_nlml(statistics, log_precision)
    known = difference(lambda x: profiled_nlml(statistics, x)[0], log_precision)
    np.testing.assert_allclose(profiled, known, rtol=1e-8, atol=1e-8 * np.abs(known).max())


def test_forms_a_and_b_of_appendix_a5(problem):
    """tr Sigma^-1 (Y^T Y - B^T Lambda_n B) against residuals and prior penalty."""
    phi, y, statistics = problem(40, 6)
    log_precision, parameters = random_hyperparameters(6, 3, 1)
    precision, noise = np.exp(log_precision), noise_covariance(parameters)
    precision_n = phi.T @ phi + np.diag(precision)
    mean = np.linalg.solve(precision_n, phi.T @ y)
    common = 0.5 * (
        40 * 3 * np.log(2 * np.pi)
        + 40 * np.linalg.slogdet(noise)[1]
        + 3 * (np.linalg.slogdet(precision_n)[1] - log_precision.sum())
    )
    residual = y - phi @ mean
    form_a = y.T @ y - mean.T @ precision_n @ mean
    form_b = residual.T @ residual + mean.T @ np.diag(precision) @ mean
    value, _, _ = nlml(statistics, log_precision, parameters)
    for form in (form_a, form_b):
        assert value == pytest.approx(common + 0.5 * np.trace(np.linalg.solve(noise, form)), rel=1e-12)


def test_stationary_noise_is_equation_10(problem):
    phi, y, statistics = problem(50, 6)
    log_precision, _ = random_hyperparameters(6, 3, 1)
    value, _, noise = profiled_nlml(statistics, log_precision)
    precision = np.exp(log_precision)
    mean = np.linalg.solve(phi.T @ phi + np.diag(precision), phi.T @ y)
    residual = y - phi @ mean
    np.testing.assert_allclose(noise, (residual.T @ residual + mean.T @ (precision[:, None] * mean)) / 50, rtol=1e-12)
    at, _, by_parameters = nlml(statistics, log_precision, noise_parameters(noise))
    assert at == pytest.approx(value, rel=1e-13)
    assert np.abs(by_parameters).max() < 1e-10 * 50
    for seed in range(5):
        _, other = random_hyperparameters(6, 3, seed)
        assert nlml(statistics, log_precision, other)[0] > value


def test_evidence_of_sklearns_bayesian_ridge(problem):
    phi, y, statistics = problem(60, 5, 1)
    # Flat hyperpriors, so that its score is the evidence alone.
    model = BayesianRidge(
        fit_intercept=False, compute_score=True, alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0, tol=1e-12, max_iter=2000
    ).fit(phi, y[:, 0])
    log_precision = np.full(5, np.log(model.lambda_ / model.alpha_))
    value, _, _ = nlml(statistics, log_precision, noise_parameters(np.array([[1 / model.alpha_]])))
    assert -value == pytest.approx(model.scores_[-1], rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(60, 5), (400, 30), (12, 20)])
def test_isotropic_fit_is_sklearns_bayesian_ridge(problem, n, d):
    phi, y, _ = problem(n, d, 1)
    phi = phi * np.geomspace(0.1, 10.0, d)
    model = BayesianRidge(
        fit_intercept=False, compute_score=True, alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0, tol=1e-13, max_iter=20000
    ).fit(phi, y[:, 0])
    found = fit_evidence(accumulate([(phi, y)], d, 1), isotropic=True)
    assert -found.nlml == pytest.approx(model.scores_[-1], rel=1e-9)
    np.testing.assert_allclose(found.precision, model.lambda_ / model.alpha_, rtol=1e-3)
    assert found.noise[0, 0] == pytest.approx(1 / model.alpha_, rel=1e-3)


def test_isotropic_fit_is_the_best_of_a_grid(problem):
    phi, y, _ = problem(80, 7)
    phi[:, 3] = 0.0
    statistics = accumulate([(phi, y)], 7)
    found = fit_evidence(statistics, isotropic=True)
    assert np.ptp(found.precision) == 0.0
    grid = np.log(found.precision[0]) + np.linspace(-8, 8, 321)
    values = [profiled_nlml(statistics, np.full(7, at))[0] for at in grid]
    assert np.argmin(values) == 160
    assert values[160] == pytest.approx(found.nlml, rel=1e-12)
    assert fit_evidence(statistics).nlml < found.nlml
    np.testing.assert_array_equal(
        fit_evidence(SufficientStatistics(np.zeros((2, 2)), np.zeros((2, 3)), np.eye(3), 9), isotropic=True).precision,
        [1.0, 1.0],
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_isotropic_evidence_does_not_see_a_rotation_of_the_features(seed):
    rng = np.random.default_rng(seed)
    phi = rng.normal(size=(60, 8)) * np.geomspace(0.01, 10.0, 8)
    y = phi @ rng.normal(size=(8, 3)) + rng.normal(size=(60, 3))
    rotation = ortho_group.rvs(8, random_state=seed % 1000)
    one = fit_evidence(accumulate([(phi, y)], 8), isotropic=True)
    other = fit_evidence(accumulate([(phi @ rotation, y)], 8), isotropic=True)
    assert other.nlml == pytest.approx(one.nlml, rel=1e-8)
    np.testing.assert_allclose(other.precision, one.precision, rtol=0.05)


def test_fit_is_at_least_as_good_as_sklearns_ard():
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(200, 15))
    y = phi[:, :4] @ np.array([[1.0], [-2.0], [0.5], [0.1]]) + 0.3 * rng.normal(size=(200, 1))
    statistics = accumulate([(phi, y)], 15, 1)
    model = ARDRegression(
        fit_intercept=False,
        alpha_1=0,
        alpha_2=0,
        lambda_1=0,
        lambda_2=0,
        threshold_lambda=1e12,
        max_iter=3000,
        tol=1e-10,
    ).fit(phi, y[:, 0])
    ratio = np.clip(model.lambda_ / model.alpha_, 1e-9, 1e10)
    known, _, _ = nlml(statistics, np.log(ratio), noise_parameters(np.array([[1 / model.alpha_]])))
    found = fit_evidence(statistics)
    assert found.nlml <= known + 1e-3
    np.testing.assert_allclose(
        Posterior.from_statistics(statistics, found.precision, found.noise).mean[:4, 0], model.coef_[:4], atol=1e-3
    )


def test_fit_is_a_stationary_point(problem):
    _, _, statistics = problem(500, 10)
    found = fit_evidence(statistics)
    value, by_precision, by_parameters = nlml(statistics, np.log(found.precision), noise_parameters(found.noise))
    assert value == pytest.approx(found.nlml, rel=1e-12)
    assert np.abs(by_parameters).max() < 1e-8 * 500
    assert np.abs(by_precision).max() == pytest.approx(found.gradient_norm, abs=1e-8)
    assert found.gradient_norm < 3e-3
    assert list(found.trace[:3]) == sorted(found.trace[:3], reverse=True)
    assert found.effective_parameters == pytest.approx(effective_parameters(statistics, found.precision))
    for seed in range(4):
        step = 0.3 * np.random.default_rng(seed).normal(size=10)
        assert profiled_nlml(statistics, np.log(found.precision) + step)[0] > found.nlml


def test_known_noise_and_weights_are_recovered():
    rng = np.random.default_rng(3)
    noise = np.array([[0.5, 0.2, -0.1], [0.2, 0.4, 0.05], [-0.1, 0.05, 0.3]])
    precision = 10.0 ** rng.uniform(-1, 1, 30)
    weights = rng.normal(size=(30, 3)) / np.sqrt(precision)[:, None] @ np.linalg.cholesky(noise).T
    phi = rng.normal(size=(40_000, 30)).astype(np.float32)
    y = phi @ weights + rng.normal(size=(40_000, 3)) @ np.linalg.cholesky(noise).T
    statistics = accumulate([(phi, y)], 30)
    found = fit_evidence(statistics)
    # Wishart noise of Sigma_e is sqrt(2 / N) = 0.7 %, of a weight sqrt(Sigma_e / N).
    np.testing.assert_allclose(found.noise, noise, atol=4 * 0.0071 * 0.5)
    posterior = Posterior.from_statistics(statistics, found.precision, found.noise)
    np.testing.assert_allclose(posterior.mean, weights, atol=5 * np.sqrt(0.5 / 40_000))
    # With three draws a feature, lambda is known to a factor of about exp(sqrt(2 / 3)).
    assert abs(np.mean(np.log(found.precision / precision))) < 0.5 + 4 * np.sqrt(2 / 3 / 30)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_rotating_all_forces_rotates_the_noise(seed):
    rng = np.random.default_rng(seed)
    phi = rng.normal(size=(120, 8))
    y = phi @ rng.normal(size=(8, 3)) + rng.normal(size=(120, 3)) * [0.3, 1.0, 2.0]
    rotation = ortho_group.rvs(3, random_state=seed)
    log_precision = rng.normal(size=8)
    one = profiled_nlml(accumulate([(phi, y)], 8), log_precision)
    other = profiled_nlml(accumulate([(phi, y @ rotation.T)], 8), log_precision)
    assert other[0] == pytest.approx(one[0], rel=1e-11)
    np.testing.assert_allclose(other[1], one[1], atol=1e-9)
    np.testing.assert_allclose(other[2], rotation @ one[2] @ rotation.T, atol=1e-11)


def test_fit_follows_a_rotation(problem):
    phi, y, statistics = problem(400, 8)
    rotation = ortho_group.rvs(3, random_state=1)
    one, other = fit_evidence(statistics), fit_evidence(accumulate([(phi, y @ rotation.T)], 8))
    assert other.nlml == pytest.approx(one.nlml, abs=1e-4)
    np.testing.assert_allclose(other.noise, rotation @ one.noise @ rotation.T, rtol=1e-3, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(-6, 6), st.floats(-4, 4))
def test_units(seed, feature_exponent, target_exponent):
    """Features by c: lambda by c^2. Targets by t: Sigma_e by t^2, the evidence shifted by N K log t."""
    rng = np.random.default_rng(seed)
    c, t = 10.0**feature_exponent, 10.0**target_exponent
    phi = rng.normal(size=(100, 6)) * 10.0 ** rng.uniform(-2, 2, 6)
    y = rng.normal(size=(100, 3)) + phi @ rng.normal(size=(6, 3))
    one = fit_evidence(accumulate([(phi, y)], 6))
    other = fit_evidence(accumulate([(phi * c, y * t)], 6))
    assert other.nlml == pytest.approx(one.nlml + 300 * np.log(t), abs=1e-3)
    np.testing.assert_allclose(other.noise, one.noise * t**2, rtol=1e-2, atol=1e-3 * t**2 * one.noise.max())
    free = (one.precision / np.sum(phi**2, axis=0)) < 1.0
    np.testing.assert_allclose(other.precision[free], one.precision[free] * c**2, rtol=0.02)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(8, 60), st.integers(1, 40))
def test_fit_never_worse_than_its_start(seed, n, d):
    rng = np.random.default_rng(seed)
    phi = rng.normal(size=(n, d)) * 10.0 ** rng.uniform(-3, 3, d)
    y = rng.normal(size=(n, 3))
    statistics = accumulate([(phi, y)], d)
    start = profiled_nlml(statistics, np.log(np.mean(phi**2, axis=0)))[0]
    found = fit_evidence(statistics)
    assert found.nlml <= start
    assert np.all(np.linalg.eigvalsh(found.noise) > 0)
    assert 0 <= found.effective_parameters <= min(n, d) + 1e-9


@pytest.mark.parametrize("isotropic", [False, True])
@pytest.mark.parametrize(("n", "weakest", "offset"), [(300, 1e-3, 0.0), (3000, 1e-5, 0.0), (200, 1.0, 300.0)])
def test_a_signal_in_what_hardly_counts_in_the_mean_squares_is_found(n, weakest, offset, isotropic):
    """At precisions of the features' mean squares all of it is shrunk away, which is a maximum of its own."""
    rng = np.random.default_rng(0)
    d = 32
    directions = rng.normal(size=(n + 1000, d))
    phi = directions * np.geomspace(1.0, weakest, d) @ ortho_group.rvs(d, random_state=0) + offset
    phi = phi.astype(np.float32)
    y = directions[:, -8:] @ rng.normal(size=(8, 3)) / 8**0.5 + 0.1 * rng.normal(size=(n + 1000, 3))
    statistics = accumulate([(phi[:n], y[:n])], d)
    found = fit_evidence(statistics, isotropic)
    error = Posterior.from_statistics(statistics, found.precision, found.noise).predict(phi[n:]) - y[n:]
    assert np.sqrt(np.mean(error**2)) < 0.2
    grid = np.log(statistics.gram.diagonal().max()) + np.linspace(np.log(1e-11), np.log(1e2), 80)
    assert found.nlml <= min(profiled_nlml(statistics, np.full(d, at))[0] for at in grid)


def hostile(n=2000):
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(n, 12)).astype(np.float32)
    phi[:, 1] = phi[:, 0]  # duplicated
    phi[:, 2] = 0.0  # dead
    phi[:, 3] = 1.0  # constant
    phi[:, 4] *= 1e-12
    phi[:, 5] *= 1e12
    phi[:, 6] = phi[:, 7] * (1 + 1e-6)  # nearly duplicated
    phi[:, 8] = 3 * phi[:, 9] - 2 * phi[:, 10]  # collinear
    weights = np.zeros((12, 3))
    weights[[0, 3, 7, 9, 11]] = rng.normal(size=(5, 3))
    return phi, phi.astype(float) @ weights + 0.1 * rng.normal(size=(n, 3))


def test_hostile_features_do_not_break_the_fit():
    phi, y = hostile()
    statistics = accumulate([(phi, y)], 12)
    found = fit_evidence(statistics)
    clean = [0, 3, 4, 5, 7, 9, 10, 11]
    reference = fit_evidence(accumulate([(phi[:, clean], y)], len(clean)))
    assert found.unused == 1
    assert found.nlml <= reference.nlml + 1.0
    np.testing.assert_allclose(np.diag(found.noise), 0.01, rtol=0.1)
    ratio = (
        found.precision[found.precision != found.precision[2]]
        / statistics.gram.diagonal()[found.precision != found.precision[2]]
    )
    assert np.all((ratio >= LOWEST_RATIO * 0.999) & (ratio <= HIGHEST_RATIO * 1.001))
    posterior = Posterior.from_statistics(statistics, found.precision, found.noise)
    other = Posterior.from_statistics(
        accumulate([(phi[:, clean], y)], len(clean)), reference.precision, reference.noise
    )
    np.testing.assert_allclose(posterior.predict(phi), other.predict(phi[:, clean]), atol=0.01)
    u = posterior.variance_factor(phi)
    assert np.all(np.isfinite(u))
    assert np.all(u > 0)
    # A feature that training never saw: the prior speaks.
    probe = np.zeros((1, 12))
    probe[0, 2] = 1.0
    assert posterior.variance_factor(probe)[0] == pytest.approx(1 / found.precision[2])


def test_all_features_zero():
    y = np.random.default_rng(0).normal(size=(50, 3))
    found = fit_evidence(accumulate([(np.zeros((50, 4)), y)], 4))
    np.testing.assert_allclose(found.noise, y.T @ y / 50)
    assert (found.unused, found.effective_parameters) == (4, 0.0)
    assert found.nlml == pytest.approx(-multivariate_normal(np.zeros(3), y.T @ y / 50).logpdf(y).sum())


def test_fewer_atoms_than_features():
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(60, 200))
    y = phi[:, :3] @ rng.normal(size=(3, 3)) + 0.3 * rng.normal(size=(60, 3))
    found = fit_evidence(accumulate([(phi, y)], 200))
    assert np.all(np.linalg.eigvalsh(found.noise) > 0)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_too_few_atoms(problem, n):
    _, _, statistics = problem(n, 2)
    with pytest.raises(FitError, match=f"{n} rows cannot determine"):
        fit_evidence(statistics)


def test_what_cannot_be_fitted_is_named(problem):
    phi, y, statistics = problem(50, 3)
    broken = SufficientStatistics(statistics.gram * np.nan, statistics.cross, statistics.target, 50)
    with pytest.raises(FitError, match=r"Phi\^T Phi"):
        fit_evidence(broken)
    flat = y * [1, 0, 1]
    with pytest.raises(FitError, match="component 1 is zero"):
        fit_evidence(accumulate([(phi, flat)], 3))
    with pytest.raises(FitError, match="reproduced to rounding|not positive definite"):
        fit_evidence(accumulate([(phi, phi @ np.ones((3, 3)))], 3))
    with pytest.raises(FitError, match="not positive definite"):
        fit_evidence(accumulate([(phi, y[:, [0, 1, 1]])], 3))


@pytest.mark.parametrize("scale", [1e3, 1e6])
def test_many_rows(problem, scale):
    """The same data ever so often: the evidence's rounding grows with N, the fit must still be accepted."""
    _, _, one = problem(300, 40)
    scale = int(scale)
    many = SufficientStatistics(one.gram * scale, one.cross * scale, one.target * scale, one.n * scale)
    found = fit_evidence(many)
    least_squares = np.linalg.solve(one.gram, one.cross)
    residual = one.target - least_squares.T @ one.cross
    np.testing.assert_allclose(found.noise, residual / 300, rtol=1e-3)


@pytest.mark.parametrize("seed", [0, 2])
def test_a_value_that_is_known_to_a_ten_thousandth_only_does_not_end_the_search(seed, monkeypatch):
    """What nearly collinear features make of the value, whose gradient stays accurate."""
    rng = np.random.default_rng(seed)
    phi = rng.normal(size=(400, 30)) @ rng.normal(size=(30, 30)) * np.logspace(0, -3, 30)
    y = phi @ rng.normal(size=(30, 3)) + rng.normal(size=(400, 3))
    statistics = accumulate([(phi.astype(np.float32), y)], 30)
    exact = fit_evidence(statistics)

    def coarse(*arguments):
        value, *others = _profiled(*arguments)
        return round(value, 4), *others

    monkeypatch.setattr(evidence, "_profiled", coarse)
    found = fit_evidence(statistics)
    assert found.gradient_norm <= 3e-3
    assert found.nlml == pytest.approx(exact.nlml, abs=1e-3)


@pytest.fixture
def searches(monkeypatch):
    """Make the first search of an optimiser end as rounding may end it; return what is counted for each."""
    minimize, calls = evidence.minimize, []

    def failing_once(*arguments, **options):
        calls.append(1)
        if len(calls) == 1:
            raise FitError("rounding")
        return minimize(*arguments, **options)

    monkeypatch.setattr(evidence, "minimize", failing_once)
    return calls


def test_a_search_that_fails_from_a_weaker_prior_is_done_from_another_start(problem, searches, monkeypatch):
    _, _, statistics = problem(300, 8, noise=1e-6 * np.eye(3))
    monkeypatch.setattr(evidence, "_FIXED_POINT_STEPS", 0)
    found = fit_evidence(statistics)
    assert len(searches) > 1
    assert found.nlml == pytest.approx(fit_evidence(statistics).nlml, abs=1e-3)


def test_a_worse_maximum_does_not_stand_in_for_a_search_that_failed(searches):
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(40, 8))
    y = signal[:, 4:] @ rng.normal(size=(4, 3)) + 0.1 * rng.normal(size=(40, 3))
    with pytest.raises(FitError, match="rounding"):
        fit_evidence(accumulate([(signal * np.geomspace(1.0, 0.1, 8) + 30.0, y)], 8))
    assert len(searches) > 1


def test_threads_do_not_change_what_is_found():
    """Where rounding decides between maxima: 256 nearly collinear features, whose evidence has many."""
    rng = np.random.default_rng(0)
    axes = ortho_group.rvs(256, random_state=0)
    phi = (rng.normal(size=(4000, 256)) * np.geomspace(1, 1e-5, 256)) @ axes
    statistics = accumulate([(phi, phi @ rng.normal(size=(256, 3)) + 0.1 * rng.normal(size=(4000, 3)))], 256)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(fit_evidence(statistics))
    assert found[0].nlml == found[1].nlml
    np.testing.assert_array_equal(found[0].precision, found[1].precision)
