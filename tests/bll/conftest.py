import numpy as np
import pytest

from forceuq.bll.statistics import accumulate


@pytest.fixture
def problem():
    """Make (phi, y, statistics) of a linear model with known weights and noise."""

    def make(n, d, k=3, seed=0, noise=None, dtype=np.float64):
        rng = np.random.default_rng(seed)
        phi = (rng.normal(size=(n, d)) @ (np.eye(d) + 0.3 * rng.normal(size=(d, d)))).astype(dtype)
        weights = rng.normal(size=(d, k))
        factor = np.linalg.cholesky(noise) if noise is not None else np.tril(rng.normal(size=(k, k))) + 2 * np.eye(k)
        y = phi.astype(float) @ weights + rng.normal(size=(n, k)) @ factor.T
        return phi, y, accumulate([(phi, y)], d, k)

    return make
