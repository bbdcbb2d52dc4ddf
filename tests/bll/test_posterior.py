import numpy as np
import pytest
from scipy.stats import chi2
from sklearn.linear_model import BayesianRidge

from forceuq.bll.evidence import fit_evidence
from forceuq.bll.posterior import Posterior
from forceuq.bll.statistics import SufficientStatistics, accumulate
from forceuq.errors import DataError, FitError

NOISE = np.array([[0.5, 0.2, -0.1], [0.2, 0.4, 0.05], [-0.1, 0.05, 0.3]])


def test_against_a_dense_solve(problem):
    phi, y, statistics = problem(80, 9)
    precision = np.exp(np.random.default_rng(1).normal(size=9))
    posterior = Posterior.from_statistics(statistics, precision, NOISE)
    precision_n = phi.T @ phi + np.diag(precision)
    np.testing.assert_allclose(posterior.mean, np.linalg.solve(precision_n, phi.T @ y), rtol=1e-10)
    np.testing.assert_allclose(posterior.factor @ posterior.factor.T, precision_n, rtol=1e-12, atol=1e-12 * 80)
    new = np.random.default_rng(2).normal(size=(30, 9))
    u = np.einsum("nd,de,ne->n", new, np.linalg.inv(precision_n), new)
    np.testing.assert_allclose(posterior.variance_factor(new), u, rtol=1e-10)
    np.testing.assert_allclose(posterior.predict(new), new @ posterior.mean)
    assert posterior.predict(new[:0]).shape == (0, 3)
    assert posterior.variance_factor(new[:0]).shape == (0,)


def test_against_sklearns_bayesian_ridge(problem):
    phi, y, statistics = problem(60, 5, 1)
    model = BayesianRidge(fit_intercept=False).fit(phi, y[:, 0])
    posterior = Posterior.from_statistics(
        statistics, np.full(5, model.lambda_ / model.alpha_), np.array([[1 / model.alpha_]])
    )
    np.testing.assert_allclose(posterior.mean[:, 0], model.coef_, rtol=1e-8)
    new = np.random.default_rng(2).normal(size=(30, 5))
    mean, std = model.predict(new, return_std=True)
    np.testing.assert_allclose(posterior.predict(new)[:, 0], mean, rtol=1e-8)
    variance = (1 + posterior.variance_factor(new)) * posterior.noise[0, 0]
    np.testing.assert_allclose(variance, std**2, rtol=1e-8)


def test_joint_covariance_is_equation_3(problem):
    """Against the covariance of vec(Y) conditioned on the training data, without the posterior over B."""
    phi, _, statistics = problem(25, 4)
    precision = np.array([0.5, 1.0, 2.0, 4.0])
    new = np.random.default_rng(2).normal(size=(6, 4))
    both = np.concatenate([phi, new])
    rows = np.eye(31) + both / precision @ both.T
    conditional = rows[25:, 25:] - rows[25:, :25] @ np.linalg.solve(rows[:25, :25], rows[:25, 25:])
    found = Posterior.from_statistics(statistics, precision, NOISE).joint_covariance(new)
    assert found.shape == (6, 3, 6, 3)
    np.testing.assert_allclose(found, np.einsum("ij,kl->ikjl", conditional, NOISE), rtol=1e-10, atol=1e-12)
    u = Posterior.from_statistics(statistics, precision, NOISE).variance_factor(new)
    for i in range(6):
        np.testing.assert_allclose(found[i, :, i], (1 + u[i]) * NOISE)


@pytest.mark.parametrize("w", [0.01, 0.5, 30.0])
def test_proposition_3_1(problem, w):
    """Tempering likelihood and prior by w: the same mean, u / w."""
    _, _, statistics = problem(40, 6)
    precision = np.exp(np.random.default_rng(1).normal(size=6))
    tempered = SufficientStatistics(w * statistics.gram, w * statistics.cross, w * statistics.target, statistics.n)
    one = Posterior.from_statistics(statistics, precision, NOISE)
    other = Posterior.from_statistics(tempered, w * precision, NOISE)
    new = np.random.default_rng(2).normal(size=(30, 6))
    np.testing.assert_allclose(other.mean, one.mean, rtol=1e-10)
    np.testing.assert_allclose(other.variance_factor(new), one.variance_factor(new) / w, rtol=1e-10)


def test_coverage_is_nominal():
    """Data from the model itself, few enough that u matters: Mahalanobis distances are chi-squared."""
    rng = np.random.default_rng(0)
    factor = np.linalg.cholesky(NOISE)
    values = []
    for _ in range(40):
        weights = rng.normal(size=(40, 3)) @ factor.T
        phi = rng.normal(size=(200, 40))
        y = phi @ weights + rng.normal(size=(200, 3)) @ factor.T
        statistics = accumulate([(phi, y)], 40)
        found = fit_evidence(statistics)
        posterior = Posterior.from_statistics(statistics, found.precision, found.noise)
        new = rng.normal(size=(500, 40))
        error = new @ weights + rng.normal(size=(500, 3)) @ factor.T - posterior.predict(new)
        distance = np.einsum("nk,kl,nl->n", error, np.linalg.inv(posterior.noise), error)
        u = posterior.variance_factor(new)
        assert 0.1 < np.median(u) < 0.5
        values.append(distance / (1 + u))
    distance = np.concatenate(values)
    for level in (0.5, 0.9, 0.95):
        assert np.mean(distance < chi2(3).ppf(level)) == pytest.approx(level, abs=0.02)


def test_files_are_the_same_to_the_bit(problem, tmp_path):
    _, _, statistics = problem(40, 6)
    posterior = Posterior.from_statistics(statistics, np.ones(6), NOISE)
    posterior.save(tmp_path / "a")
    posterior.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    back = Posterior.load(tmp_path / "a")
    for name in ("mean", "factor", "noise", "precision"):
        np.testing.assert_array_equal(getattr(back, name), getattr(posterior, name))
    statistics.save(tmp_path / "c")
    with pytest.raises(DataError, match="bll-posterior"):
        Posterior.load(tmp_path / "c")


def test_a_prior_must_be_positive(problem):
    _, _, statistics = problem(40, 6)
    with pytest.raises(FitError, match="positive"):
        Posterior.from_statistics(statistics, np.array([1.0, 1, 1, 0, 1, 1]), NOISE)


def test_collinear_to_rounding_with_hardly_a_prior():
    phi = np.repeat(np.random.default_rng(0).normal(size=(100, 1)), 3, axis=1)
    statistics = accumulate([(phi, np.ones((100, 3)))], 3)
    with pytest.raises(FitError, match="collinear"):
        Posterior.from_statistics(statistics, np.full(3, 1e-30), NOISE)
