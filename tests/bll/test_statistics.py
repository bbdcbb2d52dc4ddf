from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forceuq.bll.rank_update import add_product
from forceuq.bll.statistics import SufficientStatistics, accumulate, merged
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


def same_bits(a, b):
    for name in ("gram", "cross", "target"):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name
    assert a.n == b.n


@pytest.mark.parametrize("spread", [0, 6])
def test_blocks_add_up_to_the_same_bits_in_any_order_and_grouping(spread):
    """Also where the sums cancel: features and targets of both signs, of sizes many orders apart."""
    rng = np.random.default_rng(0)
    blocks = [
        ((rng.normal(size=(50, 9)) * 10.0 ** rng.uniform(-spread, spread)).astype(np.float32), rng.normal(size=(50, 3)))
        for _ in range(60)
    ]
    whole = accumulate(blocks, 9)
    # The products themselves, added in extended precision: 12 columns already, so that BLAS sums as it does there.
    products = [np.zeros((12, 12)) for _ in blocks]
    for product, (phi, y) in zip(products, blocks, strict=True):
        add_product(product, np.hstack([phi, y]))
    lower = sum(product.astype(np.longdouble) for product in products).astype(float)
    exact = lower + np.tril(lower, -1).T
    assert exact[:9, :9].tobytes() == whole.gram.tobytes()
    assert sum(products).tobytes() != lower.tobytes(), "a plain sum would do: this tests nothing"
    for _ in range(20):
        order = rng.permutation(60)
        edges = np.unique([0, *rng.integers(1, 60, rng.integers(0, 10)), 60])
        shards = [accumulate([blocks[i] for i in order[a:b]], 9) for a, b in pairwise(edges)]
        same_bits(whole, merged(shards))
        same_bits(whole, merged(shards[::-1]))


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
    loaded = SufficientStatistics.load(tmp_path / "a.safetensors")
    same_bits(found, loaded)
    np.testing.assert_array_equal(found.low, loaded.low)
    with pytest.raises(DataError, match=r"a\.safetensors: is of other features"):
        SufficientStatistics.load(tmp_path / "a.safetensors", "something")
    (tmp_path / "a.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match=r"a\.safetensors"):
        SufficientStatistics.load(tmp_path / "a.safetensors")
