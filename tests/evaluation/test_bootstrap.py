import errno
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forceuq import bootstrap as module
from forceuq.bootstrap import METRICS, bootstrap
from forceuq.errors import DataError
from forceuq.metrics import evaluate
from forceuq.predictions import read_predictions, write_predictions

LABELS = {"dataset": "d", "task": "t", "method": "m", "seed": 0, "split": "id"}
CALIBRATIONS = [(1.0, 1.0), (2.0, 0.3)]


@pytest.fixture
def written(tmp_path):
    """Write predictions, as one or more blocks."""

    def write(*blocks):
        write_predictions(tmp_path / "id.parquet", blocks, LABELS)
        return tmp_path / "id.parquet"

    return write


def drawn(data, weights):
    """Repeat the atoms of structures as often as they are drawn."""
    atoms = np.repeat(np.arange(len(data)), weights[data.structure])
    return replace(data, **{name: value[atoms] for name, value in vars(data).items()})


def with_weights(monkeypatch, *weights):
    monkeypatch.setattr(
        module, "_weights", lambda structures, *_: iter([np.ones((1, structures), np.uint16), *weights])
    )


def assert_same(found, expected, rel=1e-12):
    for one, other in zip(found.metrics, expected.metrics, strict=True):
        for metric in METRICS:
            np.testing.assert_allclose(one[metric], other[metric], rtol=rel, err_msg=metric)


@pytest.mark.parametrize("kind", ["bll", "ensemble"])
def test_a_draw_is_the_metrics_of_the_structures_drawn(written, block, monkeypatch, kind):
    data = block(700, kind=kind)
    weights = np.random.default_rng(0).multinomial(100, np.full(100, 0.01), size=3).astype(np.uint16)
    with_weights(monkeypatch, weights[:2], weights[2:])
    found = bootstrap(written(data), CALIBRATIONS, 3, [0])
    for draw, row in enumerate([np.ones(100, dtype=int), *weights]):
        expected = evaluate([drawn(data, row)], CALIBRATIONS)
        for calibration, metrics in zip(expected, found.metrics, strict=True):
            for metric in METRICS:
                assert metrics[metric][draw] == pytest.approx(calibration.values[metric][0], rel=1e-12), metric


def test_with_more_atoms_than_groups_a_draw_is_off_by_a_small_part_of_what_draws_differ_by(written, block, monkeypatch):
    data = block(7000, kind="ensemble", scale=0.1)
    weights = np.random.default_rng(0).multinomial(1000, np.full(1000, 1e-3), size=20).astype(np.uint16)
    with_weights(monkeypatch, weights)
    exact = np.array([evaluate([drawn(data, row)], CALIBRATIONS[:1])[0].values["spearman"][0] for row in weights])
    error = []
    for groups in (64, 512):
        monkeypatch.setattr(module, "_GROUPS", {2**62: groups})
        found = bootstrap(written(data), CALIBRATIONS[:1], 20, [0]).metrics[0]["spearman"]
        assert found[0] == pytest.approx(evaluate([data], CALIBRATIONS[:1])[0].values["spearman"][0], rel=1e-12)
        error.append(np.abs(found[1:] - exact).max() / exact.std())
    assert error[1] < 0.02
    assert error[1] < error[0] / 4


def test_a_value_of_many_atoms_is_a_group_of_its_own(written, block, monkeypatch):
    # Half of the atoms have one error, in the midst of the others': were those just below it in its group, their ranks
    # would be off by a quarter of all.
    data = block(7000, kind="ensemble", scale=0.1)
    error = np.sqrt(np.square(data.target - data.mean).sum(axis=1))
    assert 0.3 < (error < 0.25).mean() < 0.7
    same = np.arange(7000)[:, None] % 2 == 0
    target, mean = np.where(same, [0.25, 0.0, 0.0], data.target), np.where(same, 0.0, data.mean)
    data = replace(data, target=target, mean=mean)
    row = np.random.default_rng(0).multinomial(1000, np.full(1000, 1e-3)).astype(np.uint16)
    with_weights(monkeypatch, row[None])
    monkeypatch.setattr(module, "_GROUPS", {2**62: 100})
    found = bootstrap(written(data), CALIBRATIONS, 1, [0])
    for calibration, metrics in zip(evaluate([drawn(data, row)], CALIBRATIONS), found.metrics, strict=True):
        assert metrics["spearman"][1] == pytest.approx(calibration.values["spearman"][0], abs=3e-4)
    ends = module._bounds(np.concatenate([np.arange(-500.0, 0.0), np.zeros(500), np.arange(1.0, 501.0)]), 10)
    assert np.unique(np.searchsorted(ends, np.array([-1.0, 0.0, 1.0]))).size == 3


def test_groups_are_of_all_atoms_where_there_are_more_than_are_sampled(written, block, monkeypatch):
    # Of each structure the first atom's error is the smallest by far: every seventh atom would be a sample of these.
    data = block(7000, kind="ensemble", scale=0.1)
    factor = np.where(np.arange(7000) % 7 == 0, 1e-3, 1.0)[:, None]
    monkeypatch.setattr(module, "_SAMPLE", 1000)
    monkeypatch.setattr(module, "_GROUPS", {2**62: 100})
    traces = module._Records(None)
    residual = factor * (data.target - data.mean)
    path = written(replace(data, mean=data.target - residual))
    module._summed(path, CALIBRATIONS, module._Records(None), traces, None)
    for grid in module._grids(traces, CALIBRATIONS, None):
        cells = np.concatenate([grid.number[cell] for (cell,) in grid.atoms])
        for groups in (grid.errors[cells], grid.traces[cells]):
            assert np.bincount(groups).max() < 7000 / 20


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.integers(2, 20))
@settings(deadline=None)
def test_groups_keep_the_order(values, groups):
    values = np.array(values, dtype=float)
    group = np.searchsorted(module._bounds(values, groups), values)
    order = np.argsort(values, kind="stable")
    assert (np.diff(group[order]) >= 0).all()
    if len(np.unique(values)) <= groups:
        assert np.array_equal(np.unique(group, return_inverse=True)[1], np.unique(values, return_inverse=True)[1])


def test_the_draws_are_those_of_structures_with_replacement():
    first, *rest = module._weights(50, 2000, [0, 3], 300)
    weights = np.concatenate(rest)
    assert first.tolist() == [[1] * 50]
    assert weights.shape == (2000, 50)
    assert (weights.sum(axis=1) == 50).all()
    # Binomial(50, 1/50): variance 0.98; of 100,000 counts the estimate's standard deviation is some 0.006.
    assert weights.var() == pytest.approx(0.98, abs=0.03)
    assert np.array_equal(weights, np.concatenate(list(module._weights(50, 2000, [0, 3], 7))[1:]))


@pytest.mark.parametrize("limit", [{"_BYTES": 8 * 1400 * 7}, {"_ATOMS": 200}, {"_STRUCTURES": 30}, {"_SPOOL": 1000}])
def test_nothing_depends_on_how_much_is_held_at_once(written, block, monkeypatch, limit):
    blocks = [block(140, seed, kind="ensemble") for seed in range(10)]
    path = written(*(replace(b, structure=b.structure + 20 * i) for i, b in enumerate(blocks)))
    # The file is read in one block; a structure that goes on from one block to the next is still one.
    (read,) = read_predictions(path)
    pieces = [
        replace(read, **{name: value[start : start + 45] for name, value in vars(read).items()})
        for start in range(0, 1400, 45)
    ]
    whole = bootstrap(path, CALIBRATIONS, 30, [0])
    for name, value in limit.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "read_predictions", lambda _: iter(pieces))
    again = bootstrap(path, CALIBRATIONS, 30, [0])
    assert again.structures == whole.structures
    assert_same(again, whole)


def test_calibrations_that_leave_the_order_as_it_is_share_their_work(written, block):
    data = block(700)  # the spread is a multiple of the floor
    for predictions, shared in ((data, True), (block(700, kind="ensemble"), False)):
        traces = module._Records(None)
        module._summed(written(predictions), CALIBRATIONS, module._Records(None), traces, None)
        one, other = module._grids(traces, CALIBRATIONS, None)
        assert (one is other) == shared


def test_structures_are_told_apart(written, block):
    data = block(140)
    path = written(data)
    known = bootstrap(path, CALIBRATIONS, 1, [0]).structures
    assert bootstrap(written(replace(data, part=data.part + 1)), CALIBRATIONS, 1, [0]).structures != known
    assert bootstrap(written(replace(data, structure=data.structure[::-1])), CALIBRATIONS, 1, [0]).structures != known
    assert bootstrap(written(replace(data, mean=data.mean + 1)), CALIBRATIONS, 1, [0]).structures == known


def test_no_atoms_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "read_predictions", lambda _: iter([]))
    with pytest.raises(DataError, match=r"id\.parquet: there are no atoms to compare on"):
        bootstrap(tmp_path / "id.parquet", CALIBRATIONS, 1, [0])


def test_a_full_disk_is_named(written, block, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = written(block(140))
    monkeypatch.setattr(module.np, "save", full)
    with pytest.raises(
        OSError, match="No space left on device, in a temporary file of what the bootstrap draws from"
    ) as caught:
        bootstrap(path, CALIBRATIONS, 1, [0], tmp_path)
    assert caught.value.filename == str(tmp_path)
