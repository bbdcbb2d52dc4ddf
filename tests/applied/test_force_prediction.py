"""Summaries of a predicted covariance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from forceuq.applied.predictor import ForcePrediction, Predictor
from forceuq.errors import ConfigurationError


def prediction(seed: int, scale: float) -> ForcePrediction:
    random = np.random.default_rng(seed)
    roots = scale * random.normal(size=(2, 4, 3, 3))
    floor, spread = roots @ roots.swapaxes(-1, -2)
    return ForcePrediction(np.zeros((4, 3)), floor, spread, np.zeros(4))


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e3))
def test_component_std_and_correlation_give_the_covariance_back(seed, scale):
    found = prediction(seed, scale)
    std = found.component_std
    again = std[:, :, None] * std[:, None, :]
    for place, (i, j) in enumerate(((1, 2), (0, 2), (0, 1))):
        again[:, i, j] *= found.correlation[:, place]
        again[:, j, i] *= found.correlation[:, place]
    np.testing.assert_allclose(again, found.floor + found.spread, rtol=1e-12, atol=1e-12 * scale**2)


@given(st.integers(0, 2**32 - 1))
def test_std_is_the_same_in_any_orientation(seed):
    found = prediction(seed, 1.0)
    turn = Rotation.random(random_state=seed).as_matrix()
    turned = ForcePrediction(found.forces, turn @ found.floor @ turn.T, turn @ found.spread @ turn.T, found.rank)
    np.testing.assert_allclose(turned.std, found.std, rtol=1e-12)
    np.testing.assert_allclose(3.0 * found.std**2, (found.component_std**2).sum(axis=1), rtol=1e-12)


def test_a_component_without_variance_has_no_correlation():
    flat = np.diag([1.0, 0.0, 4.0])[None]
    found = ForcePrediction(np.zeros((1, 3)), flat, 0.0 * flat, np.zeros(1))
    assert found.correlation.tolist() == [[0.0, 0.0, 0.0]]
    assert found.component_std.tolist() == [[1.0, 0.0, 2.0]]


@pytest.mark.parametrize("device", ["gpu", "cdua", "mps", "cuda:1"])
def test_a_device_of_another_name_is_named(device):
    with pytest.raises(ConfigurationError, match=f"device: '{device}' is not valid; valid: cpu, cuda, auto"):
        Predictor(None, device)
