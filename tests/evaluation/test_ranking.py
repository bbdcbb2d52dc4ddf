import resource
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from forceuq import ranking
from forceuq.ranking import FRACTIONS, Ranking


def ranked(error, floor, spread, a=1.0, b=1.0, held=10**6, block=37, folder=None):
    found = Ranking(folder, held)
    for start in range(0, len(error), block):
        part = slice(start, start + block)
        found.add(error[part], floor[part], spread[part])
    return found.against(a, b)


def brute(error, trace):
    """Spearman's correlation of scipy, and the sparsification curves by their definition, atom after atom."""
    order = np.argsort(trace, kind="stable")
    values = np.array([error[trace == trace[index]].mean() for index in order])
    n = len(error)
    curve, oracle = (
        np.array([some[: n - k].mean() for k in range(n)]) / error.mean() for some in (values, np.sort(error))
    )
    at = np.floor(FRACTIONS * n + 1e-9).astype(int)
    return spearmanr(trace, error).statistic, curve[at], oracle[at], np.mean(curve - oracle)


CASES = {
    "all different": lambda rng, n: (rng.normal(size=n) ** 2, rng.uniform(1, 2, n), rng.uniform(0, 1, n)),
    "few errors": lambda rng, n: (rng.integers(0, 3, n) * 0.1, rng.uniform(1, 2, n), np.zeros(n)),
    "few uncertainties": lambda rng, n: (rng.normal(size=n) ** 2, rng.integers(1, 4, n) * 0.1, np.zeros(n)),
    "most of them equal": lambda rng, n: (
        np.where(rng.uniform(size=n) < 0.8, 0.3, rng.uniform(size=n)),
        np.where(rng.uniform(size=n) < 0.8, 1.1, rng.uniform(1, 2, n)),
        np.zeros(n),
    ),
    "in order": lambda rng, n: (np.sort(rng.uniform(size=n)), np.sort(rng.uniform(1, 2, n)), np.zeros(n)),
}


@pytest.mark.parametrize("held", [1, 16, 100, 10**6])
@pytest.mark.parametrize("case", CASES)
def test_pieces_give_what_the_definitions_do(monkeypatch, case, held):
    monkeypatch.setattr(ranking, "_BLOCK", 23)
    monkeypatch.setattr(ranking, "_CUTS", 30)
    error, floor, spread = CASES[case](np.random.default_rng(0), 400)
    found = ranked(error, floor, spread, 0.7, 2.0, held)
    spearman, curve, oracle, ause = brute(error, 0.7 * floor + 2.0 * spread)
    assert found.spearman == (pytest.approx(spearman, abs=1e-13), None)
    assert found.ause == (pytest.approx(ause, abs=1e-13), None)
    np.testing.assert_allclose(found.curve, curve, rtol=1e-12)
    np.testing.assert_allclose(found.oracle, oracle, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1e3), st.floats(1e-3, 1e3)), min_size=2, max_size=60),
    st.integers(1, 20),
    st.integers(1, 9),
)
def test_how_many_are_held_does_not_matter(atoms, held, block):
    error, floor = np.array(atoms).T
    one, other = (ranked(error, floor, 0.0 * floor, held=some, block=block) for some in (held, 1000))
    for name in ("spearman", "ause"):
        (value, reason), (known, known_reason) = getattr(one, name), getattr(other, name)
        assert reason == known_reason
        assert value == pytest.approx(known, abs=1e-9)
    if other.curve is not None:
        np.testing.assert_allclose(one.curve, other.curve, rtol=1e-9)


def test_several_uncertainties_are_ranked_one_after_another():
    rng = np.random.default_rng(1)
    error, floor, spread = rng.uniform(size=(3, 300))
    found = Ranking(None, 40)
    found.add(error, floor, spread)
    for a, b in ((1.0, 0.0), (0.0, 1.0), (1.0, 0.0)):
        assert found.against(a, b).spearman[0] == pytest.approx(spearmanr(a * floor + b * spread, error).statistic)


def test_values_that_fall_between_the_cuts_are_sorted_all_the_same(monkeypatch):
    """What is sampled is a twentieth of the rows, and lies below all others: a piece larger than is held."""
    monkeypatch.setattr(ranking, "_CUTS", 20)
    rng = np.random.default_rng(2)
    error = rng.uniform(1, 2, 400)
    error[::20] = rng.uniform(0, 1, 20)
    floor = rng.uniform(1, 2, 400)
    found = ranked(error, floor, 0.0 * floor, held=10, block=400)
    assert found.spearman[0] == pytest.approx(spearmanr(floor, error).statistic, abs=1e-13)


@pytest.mark.parametrize("case", ["all different", "most of them equal"])
def test_memory_does_not_grow_with_the_atoms(tmp_path, monkeypatch, case):
    monkeypatch.setattr(ranking, "_BLOCK", 2**12)

    def peak(n):
        rng = np.random.default_rng(3)
        found = Ranking(tmp_path, 2**13)
        tracemalloc.start()
        for _ in range(n // 5000):
            found.add(*CASES[case](rng, 5000))
        found.against(1.0, 1.0)
        bytes_at_most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return bytes_at_most

    assert peak(400_000) < 1.5 * peak(100_000) < 32 * 100_000
    assert not list(tmp_path.iterdir())


def test_the_smallest_of_errors():
    found = ranked(np.array([0.0, 5e-324, 0.0]), np.array([1.0, 3.0, 2.0]), np.zeros(3))
    assert found.spearman[0] == pytest.approx(spearmanr([1, 3, 2], [0, 1, 0]).statistic)
    assert found.ause == (0.0, None)


def test_a_disk_that_is_full_is_named(tmp_path):
    """By a limit on the size of files, which fails as a full disk does: where what is buffered is written."""
    rng = np.random.default_rng(5)
    found = Ranking(tmp_path, 1000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))

    def fill():
        for _ in range(5):
            found.add(*rng.uniform(size=(3, 1000)))
        found.against(1.0, 1.0)

    try:
        with pytest.raises(OSError, match=f"make room there.*{tmp_path}"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_the_file_is_where_it_is_told_to_be(tmp_path):
    rng = np.random.default_rng(4)
    error, floor, spread = rng.uniform(size=(3, 100))
    ranked(error, floor, spread, held=100, folder=tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="absent"):
        ranked(error, floor, spread, held=99, folder=tmp_path / "absent")
