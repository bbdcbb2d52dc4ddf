"""SWAG's mathematics: moments of iterates, samples from their Gaussian, the spread that follows."""

import numpy as np
import pytest
import torch

from forceuq.bll.batches import Standardisation
from forceuq.errors import DataError
from forceuq.features.cache import FeatureReader
from forceuq.force_head.swag import Moments, SwagPosterior, WeightGaussian
from forceuq.force_head.training import StandardisedHead, count_parameters
from forceuq.methods import swag
from forceuq.predictions import unpack_symmetric


def observe(iterates, rank):
    moments = Moments(rank)
    for iterate in iterates:
        moments.observe({"a": torch.from_numpy(iterate[:4].reshape(2, 2)), "b": torch.from_numpy(iterate[4:])})
    return moments


@pytest.mark.parametrize(("n", "rank"), [(40, 20), (40, 40), (5, 2)])
def test_moments_are_those_of_the_iterates(n, rank):
    iterates = 3.0 + np.random.default_rng(0).normal(size=(n, 7)).cumsum(axis=0).astype(np.float32)
    found = observe(iterates, rank).gaussian()
    w = iterates.astype(np.float64)
    np.testing.assert_allclose(found.mean, w.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(found.variance, w.var(axis=0), rtol=1e-9)
    # Each from the mean of the iterates up to its own.
    expected = [w[t] - w[: t + 1].mean(axis=0) for t in range(n - rank, n)]
    np.testing.assert_allclose(found.deviations, expected, rtol=1e-10, atol=1e-12)


def test_the_variance_is_not_negative_where_an_iterate_stands_still():
    iterates = np.tile(np.array([1e3, 1.1, 0.0, -7.3, 1e-20, 123.456, 1 / 3], dtype=np.float32), (40, 1))
    found = observe(iterates, 20).gaussian()
    assert (found.variance >= 0).all()
    assert (found.variance <= 1e-12 * iterates[0].astype(float) ** 2).all()
    np.testing.assert_allclose(found.mean, iterates[0], rtol=1e-14)


def test_on_a_quadratic_loss_the_stationary_variance_is_found():
    """SGD with gradient noise s on h w^2 / 2 at rate r is autoregressive: variance (r s)^2 / (1 - (1 - r h)^2)."""
    rng = np.random.default_rng(3)
    curvature, rate, noise = np.array([0.5, 1.0, 2.0, 4.0, 1.0]), 0.3, 0.7
    optimum = np.arange(5.0)
    w, iterates = optimum.copy(), []
    for _ in range(20_000):
        w = w - rate * (curvature * (w - optimum) + noise * rng.normal(size=5))
        iterates.append(w)
    found = observe(np.array(iterates[100:]), 20).gaussian()
    expected = (rate * noise) ** 2 / (1.0 - (1.0 - rate * curvature) ** 2)
    np.testing.assert_allclose(found.variance, expected, rtol=0.06)
    np.testing.assert_allclose(found.mean, optimum, atol=0.03)


def test_an_interrupted_collection_has_the_same_moments():
    iterates = np.random.default_rng(0).normal(size=(12, 7))
    whole, first = observe(iterates, 5), observe(iterates[:7], 5)
    second = Moments(5)
    second.restore({name: value.clone() for name, value in first.state().items()})
    for iterate in iterates[7:]:
        second.observe({"w": torch.from_numpy(iterate)})
    for one, other in zip(vars(whole.gaussian()).values(), vars(second.gaussian()).values(), strict=True):
        np.testing.assert_array_equal(one, other)


def gaussian(p, rank, seed=0):
    rng = np.random.default_rng(seed)
    return WeightGaussian(rng.normal(size=p), rng.chisquare(2, size=p), 0.8 * rng.normal(size=(rank, p)))


def covariance_of(weights):
    """Eq. (1) of arXiv:1902.02476 with the diagonal of section 3.2, halved."""
    d = weights.deviations.T
    return 0.5 * (np.diag(weights.variance) + d @ d.T / (d.shape[1] - 1))


@pytest.mark.parametrize("rank", [2, 5])
def test_samples_have_the_gaussians_moments(rank):
    weights = gaussian(6, rank)
    samples = np.array(list(weights.samples(60_000, 4)))
    covariance = covariance_of(weights)
    scale = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(samples.mean(axis=0), weights.mean, atol=4 * scale.max() / np.sqrt(60_000))
    np.testing.assert_allclose(
        np.cov(samples.T) / np.outer(scale, scale), covariance / np.outer(scale, scale), atol=0.025
    )


def test_samples_follow_from_the_seed_and_not_from_their_number():
    weights = gaussian(6, 3)
    few, many, other = (np.array(list(weights.samples(n, seed))) for n, seed in ((3, 0), (10, 0), (3, 1)))
    np.testing.assert_array_equal(few, many[:3])
    assert not (few == other).any()
    assert len(np.unique(many)) == many.size


@pytest.fixture
def last_layer(head, parts):
    """A posterior in which only the last layer is uncertain: forces are linear in what is drawn."""
    reader = FeatureReader(parts)
    p, last = count_parameters(head), head.out_weight.size + 3
    standardisation = Standardisation.of(reader)
    start = StandardisedHead(head, standardisation).parameters().values()
    drawn = gaussian(last, 4)
    variance, deviations = np.zeros(p), np.zeros((4, p))
    variance[-last:], deviations[:, -last:] = 1e-2 * drawn.variance, 0.1 * drawn.deviations
    mean = np.concatenate([tensor.detach().numpy().ravel() for tensor in start])
    return SwagPosterior(head, standardisation, WeightGaussian(mean, variance, deviations))


def analytic_spread(posterior, parts):
    head = posterior.head
    x = np.concatenate([block.features for block in FeatureReader(parts).blocks()])
    phi = head.penultimate(x).astype(np.float64)
    eye = np.eye(3)
    # d force_i / d (W_jk, b_j) = std delta_ij (phi_k, 1); the weights lie row by row, then the biases.
    by_weight = np.einsum("ij,nk->nijk", eye, phi).reshape(len(phi), 3, -1)
    jacobian = float(head.std[0]) * np.concatenate([by_weight, np.broadcast_to(eye, (len(phi), 3, 3))], axis=2)
    covariance = covariance_of(posterior.weights)[-jacobian.shape[2] :, -jacobian.shape[2] :]
    return np.einsum("nip,pq,njq->nij", jacobian, covariance, jacobian)


def test_the_spread_converges_to_the_analytic_one(last_layer, parts):
    exact = analytic_spread(last_layer, parts)
    errors = []
    for count, seeds in ((10, 12), (100, 6), (1000, 2)):
        options = swag.Options(samples=count)
        ratios = []
        for seed in range(seeds):
            fitted = swag.FittedSwag(options, seed, last_layer, np.eye(3), {})
            spread = np.concatenate([unpack_symmetric(block.spread) for block in fitted.predict(parts)])
            ratios.append(
                np.linalg.norm(spread * count / (count - 1) - exact, axis=(1, 2)) / np.linalg.norm(exact, axis=(1, 2))
            )
        errors.append(float(np.sqrt(np.mean(np.square(ratios)))))
    assert errors[2] < 0.12
    # As one over the square root of the number of samples, about 3.2 a decade.
    assert 2.0 < errors[0] / errors[1] < 5.5
    assert 2.0 < errors[1] / errors[2] < 5.5


def test_a_sample_acts_on_features_as_cached(last_layer, parts):
    (sampled,) = last_layer.heads(1, 5)
    (weights,) = last_layer.weights.samples(1, 5)
    last = weights[-sampled.out_weight.size - 3 :].astype(np.float32)
    np.testing.assert_array_equal(sampled.out_weight.ravel(), last[:-3])
    np.testing.assert_array_equal(sampled.out_bias, last[-3:])
    x = next(FeatureReader(parts).blocks()).features
    np.testing.assert_allclose(sampled.penultimate(x), last_layer.head.penultimate(x), atol=2e-5)


def test_posterior_files(last_layer, tmp_path):
    last_layer.save(tmp_path / "a")
    loaded = SwagPosterior.load(tmp_path / "a")
    loaded.save(tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    for one, other in zip(loaded.heads(3, 0), last_layer.heads(3, 0), strict=True):
        np.testing.assert_array_equal(one.weights[0][0], other.weights[0][0])
        np.testing.assert_array_equal(one.out_weight, other.out_weight)
    path = tmp_path / "a" / "swag.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"swag\.safetensors"):
        SwagPosterior.load(tmp_path / "a")


def test_a_gaussian_of_another_head_is_refused(last_layer, tmp_path):
    small = last_layer.head
    other = small.__class__(**{**vars(small), "out_weight": small.out_weight[:, :4]})
    last_layer.save(tmp_path)
    other.save(tmp_path / "head.safetensors")
    with pytest.raises(DataError, match="not of the head beside it"):
        SwagPosterior.load(tmp_path)
