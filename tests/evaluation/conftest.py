"""Synthetic predictions whose covariance is known."""

import itertools

import numpy as np
import pytest

from forceuq.predictions import PredictionBlock, pack_symmetric, unpack_symmetric


def _spd(rng, n, scale=0.01):
    factors = rng.normal(size=(n, 3, 3))
    return scale * (factors @ factors.transpose(0, 2, 1) + 0.5 * np.eye(3))


def make_block(n, seed=0, *, a=1.0, b=1.0, kind="bll", scale=1e-3):
    """Atoms whose residuals are drawn from N(0, a floor + b spread).

    kind "bll": spread = u floor, constant floor; "ensemble": spread of rank two, floor of its own per atom;
    "zero": no spread.
    """
    rng = np.random.default_rng(seed)
    floor = np.repeat(_spd(np.random.default_rng(99), 1), n, axis=0)
    if kind == "bll":
        spread = scale * rng.chisquare(3, size=n)[:, None, None] * floor
    elif kind == "zero":
        spread = np.zeros((n, 3, 3))
    else:
        floor = _spd(rng, n)
        factors = np.sqrt(scale) * 0.1 * rng.normal(size=(n, 3, 2)) * rng.chisquare(2, size=(n, 1, 1))
        spread = factors @ factors.transpose(0, 2, 1)
    floor, spread = pack_symmetric(floor), pack_symmetric(spread)
    root = np.linalg.cholesky(unpack_symmetric(a * floor + b * spread))
    mean = rng.normal(size=(n, 3))
    return PredictionBlock(
        structure=np.arange(n, dtype=np.int64) // 7,
        atom=(np.arange(n) % 7).astype(np.int32),
        number=rng.choice([1, 6, 8], size=n).astype(np.int16),
        part=np.zeros(n, dtype=np.int16),
        target=mean + (root @ rng.normal(size=(n, 3, 1)))[:, :, 0],
        mean=mean,
        floor=floor,
        spread=spread,
    )


def cut(block, sizes):
    """The same atoms in blocks of other sizes."""
    edges = np.cumsum([0, *sizes])
    assert edges[-1] == len(block)
    for start, stop in itertools.pairwise(edges):
        yield PredictionBlock(**{name: value[start:stop] for name, value in vars(block).items()})


@pytest.fixture
def block():
    return make_block


@pytest.fixture
def cut_block():
    return cut


@pytest.fixture
def metadata():
    return {"dataset": "rmd17", "task": "ethanol", "split": "validation", "method": "bll", "seed": 3}
