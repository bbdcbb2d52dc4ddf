from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forceuq.bll.statistics import SufficientStatistics, accumulate
from forceuq.errors import DataError, FitError


def close(a, b, rtol=1e-12):
    for name in ("gram", "cross", "target"):
        x, y = getattr(a, name), getattr(b, name)
        assert np.abs(x - y).max() <= rtol * np.abs(x).max(), name
    assert a.n == b.n


def data(n=3000, d=7, seed=0):
    rng = np.random.default_rng(seed)
    phi = (rng.normal(size=(n, d)) * 10.0 ** rng.uniform(-3, 3, d) + rng.normal(size=d)).astype(np.float32)
    return phi, rng.normal(size=(n, 3))


def test_against_the_products_in_extended_precision():
    phi, y = data()
    found = accumulate([(phi, y)], 7)
    wide, values = phi.astype(np.longdouble), y.astype(np.longdouble)
    close(SufficientStatistics(wide.T @ wide, wide.T @ values, values.T @ values, 3000), found, 1e-14)
    assert found.gram.dtype == np.float64
    np.testing.assert_array_equal(found.gram, found.gram.T)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 2999), max_size=12), st.randoms(use_true_random=False))
def test_shards_in_any_number_and_order(cuts, random):
    phi, y = data()
    whole = accumulate([(phi, y)], 7)
    bounds = sorted({0, 3000, *cuts})
    shards = [slice(a, b) for a, b in pairwise(bounds)]
    random.shuffle(shards)
    close(whole, accumulate(((phi[s], y[s]) for s in shards), 7))
    merged = SufficientStatistics.empty(7)
    for s in shards:
        merged = accumulate([(phi[s], y[s])], 7).merge(merged)
    close(whole, merged)


def test_many_blocks_lose_nothing():
    """A large mean is where single precision sums would fail."""
    rng = np.random.default_rng(0)
    phi = (1000 + rng.normal(size=(100_000, 3))).astype(np.float32)
    y = rng.normal(size=(100_000, 3))
    small = accumulate(((phi[i : i + 10], y[i : i + 10]) for i in range(0, len(phi), 10)), 3)
    close(accumulate([(phi, y)], 3), small)


@pytest.mark.parametrize(("value", "word"), [(np.nan, "nan"), (np.inf, "inf")])
@pytest.mark.parametrize("where", ["feature", "target"])
def test_a_value_that_is_not_finite_is_named(value, word, where):
    phi, y = data()
    (phi if where == "feature" else y)[2345, 1] = value
    with pytest.raises(FitError, match=f"{where} 1 of row 2345 is {word}"):
        accumulate([(phi[:1000], y[:1000]), (phi[1000:], y[1000:])], 7)


def test_shapes_are_checked():
    phi, y = data()
    with pytest.raises(FitError, match="expected"):
        accumulate([(phi, y[:, :2])], 7)
    with pytest.raises(FitError, match="expected"):
        accumulate([(phi, y)], 8)
    with pytest.raises(FitError, match="do not add"):
        SufficientStatistics.empty(3) + SufficientStatistics.empty(4)


def test_files(tmp_path):
    found = accumulate([data()], 7)
    found.save(tmp_path / "a.safetensors")
    found.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    close(found, SufficientStatistics.load(tmp_path / "a.safetensors"), 0.0)
    (tmp_path / "a.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match=r"a\.safetensors"):
        SufficientStatistics.load(tmp_path / "a.safetensors")
