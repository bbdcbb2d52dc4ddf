"""The product that statistics are made of, beside NumPy's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import cython_blas

from forceuq.bll import rank_update
from forceuq.bll.rank_update import add_product


@given(n=st.integers(0, 50), m=st.integers(1, 40), seed=st.integers(0, 99))
def test_the_lower_triangle_grows_by_the_product(n: int, m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, total = rng.normal(size=(n, m)), rng.normal(size=(m, m))
    before = total.copy()
    add_product(total, rows)
    np.testing.assert_allclose(total, before + np.tril(rows.T @ rows), rtol=1e-13, atol=1e-13)
    assert (np.triu(total, 1) == np.triu(before, 1)).all()


def test_without_the_routine_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(100, 20))
    first, second = np.ones((20, 20)), np.ones((20, 20))
    assert rank_update._dsyrk() is not None, "SciPy's routine is not as it was: statistics take a tenth longer"
    add_product(first, rows)
    for capi in ({}, {"dsyrk": cython_blas.__pyx_capi__["dgemm"]}):
        rank_update._dsyrk.cache_clear()
        monkeypatch.setattr(cython_blas, "__pyx_capi__", capi)
        assert rank_update._dsyrk() is None
    add_product(second, rows)
    rank_update._dsyrk.cache_clear()
    np.testing.assert_allclose(second, first, rtol=1e-13)


@pytest.mark.parametrize(
    ("total", "rows"),
    [
        (np.zeros((3, 3)), np.zeros((5, 4))),
        (np.zeros((4, 4), np.float32), np.zeros((5, 4))),
        (np.zeros((4, 4)), np.zeros((5, 4), np.float32)),
        (np.zeros((4, 4)), np.zeros((4, 5)).T),
        (np.zeros((4, 4)).T[::-1], np.zeros((5, 4))),
    ],
)
def test_other_arrays_are_refused(total: np.ndarray, rows: np.ndarray) -> None:
    with pytest.raises(ValueError, match="not contiguous float64"):
        add_product(total, rows)
