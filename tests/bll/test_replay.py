"""Steps on filled-up batches, as a GPU replays them: the same losses and the same weights as without."""

import numpy as np
import pytest
import torch
from test_training import NODE, WIDTH, make_head, write_cache

from forceuq.bll import replay
from forceuq.bll import run as training_run
from forceuq.bll.batches import Batches, Pool, Standardisation
from forceuq.bll.objectives import ErrorObjective, EvidenceObjective, batch_nlml
from forceuq.bll.replay import Replay
from forceuq.bll.training import TrainingSettings, train_projection
from forceuq.errors import FitError
from forceuq.features.cache import FeatureMetadata, FeatureReader, FeatureWriter

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def uneven_cache(directory, seed, sizes):
    """Structures of different numbers of atoms."""
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    features = rng.normal(size=(n, NODE))
    force = np.tanh(features @ np.random.default_rng(99).normal(size=(NODE, 3))) + 0.05 * rng.normal(size=(n, 3))
    with FeatureWriter(directory, FeatureMetadata(NODE, "orb", "1", "x")) as writer:
        writer.add(
            np.repeat(np.arange(len(sizes)), sizes),
            np.concatenate([np.arange(size) for size in sizes]),
            np.ones(n),
            force,
            np.zeros((n, 3)),
            features,
        )
    return FeatureReader([directory])


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(5)
    return tuple(
        uneven_cache(tmp_path / name, seed, rng.integers(1, 40, size=count).tolist())
        for seed, (name, count) in enumerate({"train": 90, "val": 30}.items())
    )


@pytest.mark.parametrize("objective", ["mse", "nlml"])
@pytest.mark.parametrize("memory", [2**20, 20_000])
def test_filled_up_batches_train_to_the_same(data, tmp_path, monkeypatch, objective, memory):
    settings = TrainingSettings(objective, 1e-2, batch_structures=8, max_epochs=4, memory_bytes=memory)
    plain = train_projection(*data, make_head(), settings, 0, tmp_path / "plain")
    made = []

    def with_replay(run, batches, seed):
        if run.replay is None:
            run.replay = Replay(run.loss, run.optimiser, record=False)
            made.append(run.replay)
        return original(run, batches, seed)

    original = training_run.train_epoch
    monkeypatch.setattr(training_run, "train_epoch", with_replay)
    monkeypatch.setattr(replay, "_ROWS", 16)
    filled = train_projection(*data, make_head(), settings, 0, tmp_path / "filled")
    assert len(made) == 1
    # Several sizes of batch, each a step of its own; a pool that is filled anew stays the same pool.
    assert 4 < len(made[0]._steps) < 40
    np.testing.assert_allclose(plain.trace[1:], filled.trace[1:], rtol=1e-4)
    for one, other in zip(plain.head.weights, filled.head.weights, strict=True):
        np.testing.assert_allclose(one[0], other[0], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("kind", ["mse", "nlml"])
def test_rows_that_do_not_count(kind):
    generator = torch.Generator().manual_seed(0)
    phi = torch.randn(70, WIDTH, generator=generator, requires_grad=True)
    y = torch.randn(70, 3, generator=generator, dtype=torch.float64)
    real = (torch.arange(70) < 50)[:, None]

    def objective():
        return EvidenceObjective(WIDTH, 3, "cpu") if kind == "nlml" else ErrorObjective(np.ones((3, WIDTH)), "cpu")

    few, some = objective(), objective()
    expected = few(phi[:50], y[:50])
    expected.backward()
    gradient, phi.grad = phi.grad, None
    found = some(phi, y, real)
    found.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    np.testing.assert_allclose(phi.grad, gradient, rtol=1e-4, atol=1e-7)
    assert not phi.grad[50:].any()
    for name, tensor in some.parameters().items():
        np.testing.assert_allclose(tensor.grad, few.parameters()[name].grad, rtol=1e-4, atol=1e-7)


def test_an_impossible_batch_is_not_a_number_and_named(tmp_path):
    phi = torch.full((4, 3), torch.nan, dtype=torch.float64)
    four = torch.tensor(4.0, dtype=torch.float64)
    zeros = torch.zeros(3, dtype=torch.float64), torch.zeros((3, 3), dtype=torch.float64)
    assert torch.isnan(batch_nlml(phi, torch.zeros(4, 3, dtype=torch.float64), *zeros, four))
    train = write_cache(tmp_path / "train", 20, 0)
    batches = Batches(train, Standardisation.of(train), 5)
    weight = torch.ones(NODE, 3, requires_grad=True)

    def loss(x, y, real=None):
        return (x @ weight).mean() * torch.nan

    run = training_run.Run("nan", {"w": weight}, loss, learning_rate=1.0, patience=1, max_epochs=1, key="")
    run.replay = Replay(loss, run.optimiser, record=False)
    with pytest.raises(FitError, match=r"batch of structures \d+, .*: the nan loss is nan"):
        training_run.train_epoch(run, batches, 0)


def test_no_memory_for_the_features_is_said(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(FitError, match="smaller features_gib"):
        Pool(10, NODE, Standardisation(np.zeros(NODE), np.ones(NODE)))


@needs_gpu
@pytest.mark.parametrize("objective", ["mse", "nlml"])
def test_a_gpu_trains_as_the_processor_does(data, tmp_path, objective):
    settings = {"objective": objective, "learning_rate": 1e-2, "batch_structures": 8, "max_epochs": 6}
    cpu = train_projection(*data, make_head(), TrainingSettings(**settings), 0, tmp_path / "cpu")
    gpu, again = (
        train_projection(*data, make_head(), TrainingSettings(**settings, device="cuda"), 0, tmp_path / name)
        for name in ("gpu", "again")
    )
    np.testing.assert_allclose(cpu.trace[1:], gpu.trace[1:], rtol=1e-3)
    np.testing.assert_allclose(gpu.trace[1:], again.trace[1:], rtol=1e-5)
    shorter = TrainingSettings(**{**settings, "max_epochs": 3}, device="cuda")
    train_projection(*data, make_head(), shorter, 0, tmp_path / "shorter")


@needs_gpu
def test_a_gpu_goes_on_after_a_kill(data, tmp_path, monkeypatch):
    settings = TrainingSettings("nlml", 1e-2, batch_structures=8, max_epochs=6, device="cuda")
    whole = train_projection(*data, make_head(), settings, 0, tmp_path / "whole")
    original, calls = training_run.train_epoch, []

    def dying(run, batches, seed):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(run, batches, seed)

    monkeypatch.setattr(training_run, "train_epoch", dying)
    with pytest.raises(KeyboardInterrupt):
        train_projection(*data, make_head(), settings, 0, tmp_path / "c")
    monkeypatch.setattr(training_run, "train_epoch", original)
    found = train_projection(*data, make_head(), settings, 0, tmp_path / "c")
    np.testing.assert_allclose(found.trace[1:], whole.trace[1:], rtol=1e-5)
