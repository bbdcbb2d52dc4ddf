from itertools import pairwise

import numpy as np
import pytest
import torch

from forceuq.backbones.head import ForceHead
from forceuq.bll import run as training_run
from forceuq.bll.batches import Batches, Standardisation
from forceuq.bll.evidence import nlml
from forceuq.bll.objectives import EvidenceObjective, batch_nlml
from forceuq.bll.projection import Projection
from forceuq.bll.training import TrainingSettings, fresh_head, train_projection
from forceuq.errors import DataError, FitError
from forceuq.features import writer
from forceuq.features.cache import FeatureMetadata, FeatureReader, FeatureWriter

NODE, WIDTH = 6, 10


def make_head(seed=0, width=WIDTH, layers=1):
    rng = np.random.default_rng(seed)
    sizes = [NODE] + [width] * layers
    return ForceHead(
        weights=[
            (
                rng.normal(size=(out, inn)).astype(np.float32) / np.float32(np.sqrt(inn)),
                rng.normal(size=out).astype(np.float32),
            )
            for inn, out in pairwise(sizes)
        ],
        activation="silu",
        out_weight=rng.normal(size=(3, width)).astype(np.float32),
        out_bias=np.zeros(3, dtype=np.float32),
        mean=np.zeros(1, dtype=np.float32),
        std=np.ones(1, dtype=np.float32),
        remove_mean=True,
        remove_torque=True,
    )


def write_cache(directory, structures, seed, atoms=5):
    """A nonlinear function of node features of very different scales, one of them constant."""
    rng = np.random.default_rng(seed)
    n = structures * atoms
    hidden = rng.normal(size=(n, NODE))
    hidden[:, 5] = 0.0
    features = hidden * 10.0 ** np.arange(-2, 4) + np.arange(NODE)
    truth = np.random.default_rng(99).normal(size=(NODE, 3))
    force = np.tanh(hidden @ truth) + 0.05 * rng.normal(size=(n, 3))
    zbl = rng.normal(size=(n, 3))
    with FeatureWriter(directory, FeatureMetadata(NODE, "orb", "1", "x")) as writer:
        writer.add(
            np.repeat(np.arange(structures), atoms),
            np.tile(np.arange(atoms), structures),
            np.ones(n),
            force + zbl,
            zbl,
            features,
        )
    return FeatureReader([directory])


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "ROW_GROUP_ATOMS", 60)
    return write_cache(tmp_path / "train", 150, 0), write_cache(tmp_path / "val", 40, 1)


@pytest.mark.parametrize(("n", "d"), [(40, 7), (5, 12)])
def test_batch_evidence_and_gradient(problem, n, d):
    phi, y, statistics = problem(n, d)
    rng = np.random.default_rng(0)
    log_precision, noise = rng.normal(size=d), np.tril(rng.normal(size=(3, 3)))
    expected, by_precision, by_noise = nlml(statistics, log_precision, noise)
    tensors = [torch.tensor(a, requires_grad=True) for a in (phi, log_precision, noise)]
    y = torch.tensor(y)
    value = batch_nlml(tensors[0], y, *tensors[1:])
    value.backward()
    assert float(value.detach()) == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(tensors[1].grad, by_precision, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(tensors[2].grad, by_noise, rtol=1e-9, atol=1e-9)
    assert torch.autograd.gradcheck(lambda p, a, b: batch_nlml(p, y, a, b), tensors, atol=1e-5, rtol=1e-6)


def test_objective_starts_from_the_identity(problem):
    phi, y, statistics = problem(40, 7)
    loss = EvidenceObjective(7, 3, "cpu")(torch.tensor(phi, dtype=torch.float32), torch.tensor(y))
    value, _, _ = nlml(statistics, np.zeros(7), np.zeros((3, 3)))
    assert float(loss.detach()) == pytest.approx(value / 40, rel=1e-6)


def test_a_dead_unit_does_not_break_the_objective():
    phi = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    phi[:, 2] = 0
    phi[:, 3] = phi[:, 1]
    phi.requires_grad_()
    objective = EvidenceObjective(4, 3, "cpu")
    objective(phi, torch.ones(30, 3, dtype=torch.float64)).backward()
    assert torch.isfinite(phi.grad).all()
    assert objective.log_precision.grad[2] == 0


def test_standardisation(data):
    train, _ = data
    x = np.concatenate([block.features for block in train.blocks()]).astype(float)
    found = Standardisation.of(train)
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.std[:5], x.std(0)[:5], rtol=1e-12)
    assert found.std[5] == 1.0


@pytest.mark.parametrize("layers", [1, 2])
def test_the_start_is_the_pretrained_projection(data, layers):
    train, _ = data
    head = make_head(layers=layers)
    scale = Standardisation.of(train)
    # Weights as a trained backbone has them for such features: what they make of them is of order one.
    weights = [(head.weights[0][0] / scale.std.astype(np.float32), head.weights[0][1]), *head.weights[1:]]
    head = make_head(layers=layers).__class__(**{**head.__dict__, "weights": weights})
    projection = Projection(head, scale, True, "cpu")
    (batch,) = Batches(train, scale, 1000).in_order()
    x = np.concatenate([block.features for block in train.blocks()])
    expected = head.penultimate(x)
    np.testing.assert_allclose(projection(batch.x).detach(), expected, atol=2e-5)
    np.testing.assert_allclose(projection.head().penultimate(x), expected, atol=2e-5)


@pytest.mark.parametrize("memory", [10**9, 10_000, 1])
def test_batches_hold_every_structure_once(data, memory):
    train, _ = data
    source = Batches(train, Standardisation.of(train), 16, memory)
    orders = []
    for epoch in (1, 2):
        batches = list(source.epoch(7, epoch))
        assert all(len(b.structures) <= 16 and len(b.x) == len(b.y) == 5 * len(b.structures) for b in batches)
        rows = np.concatenate([b.structures[:, 1] for b in batches])
        assert sorted(rows) == list(range(150))
        orders.append(rows.tolist())
        again = list(source.epoch(7, epoch))
        assert all(np.array_equal(a.x, b.x) and np.array_equal(a.y, b.y) for a, b in zip(batches, again, strict=True))
    assert orders[0] != orders[1] != sorted(orders[0])
    assert np.concatenate([b.structures[:, 1] for b in source.in_order()]).tolist() == list(range(150))
    # The atoms go with their structures.
    y = np.concatenate([block.force - block.zbl for block in train.blocks()]).reshape(150, 5, 3)
    for batch in source.epoch(7, 1):
        np.testing.assert_array_equal(batch.y.reshape(-1, 5, 3), y[batch.structures[:, 1]])


def settings(objective, **changes):
    defaults = {"objective": objective, "learning_rate": 1e-2, "batch_structures": 16, "max_epochs": 12}
    return TrainingSettings(**{**defaults, **changes})


@pytest.mark.parametrize("objective", ["mse", "nlml"])
@pytest.mark.parametrize("width", [None, 14])
def test_training_lowers_the_validation_loss(data, tmp_path, objective, width):
    found = train_projection(*data, make_head(), settings(objective, width=width), 0, tmp_path / "c")
    losses = [validation for _, validation in found.trace]
    assert len(losses) == found.epochs + 1 == 13
    assert losses[found.best_epoch] == min(losses) < losses[0]
    assert np.shape(found.head.weights[-1][0]) == (width or WIDTH, NODE)
    assert (found.precision is None) == (objective == "mse")
    # The restored projection is that of the best epoch, on features as cached.
    if objective == "nlml":
        assert found.precision.shape == (width or WIDTH,)
        assert np.all(np.linalg.eigvalsh(found.noise) > 0)


def test_the_best_epoch_is_restored(data, tmp_path):
    """With a wild learning rate the last epoch is not the best; the result is as if stopped at the best."""
    wild = {"learning_rate": 0.3, "patience": 4, "max_epochs": 200}
    found = train_projection(*data, make_head(), settings("mse", **wild), 0, tmp_path / "a")
    assert (found.stopped, found.epochs) == ("patience", found.best_epoch + 4)
    wild["max_epochs"] = found.best_epoch
    short = train_projection(*data, make_head(), settings("mse", **wild), 0, tmp_path / "b")
    for one, other in zip(found.head.weights, short.head.weights, strict=True):
        np.testing.assert_array_equal(one[0], other[0])


class Killed(BaseException):
    pass


@pytest.mark.parametrize("objective", ["mse", "nlml"])
@pytest.mark.parametrize("after", [1, 2.5, 7])
def test_a_killed_training_goes_on_to_the_same_bits(data, tmp_path, monkeypatch, objective, after):
    whole = train_projection(*data, make_head(), settings(objective), 3, tmp_path / "whole")
    original, calls = training_run.train_epoch, 0

    def dying(run, batches, seed):
        nonlocal calls
        calls += 1
        if calls > after:
            if after % 1:  # in the midst of an epoch
                original(run, batches, seed)
            raise Killed
        return original(run, batches, seed)

    monkeypatch.setattr(training_run, "train_epoch", dying)
    with pytest.raises(Killed):
        train_projection(*data, make_head(), settings(objective), 3, tmp_path / "killed")
    trained = 0

    def counting(run, batches, seed):
        nonlocal trained
        trained += 1
        return original(run, batches, seed)

    monkeypatch.setattr(training_run, "train_epoch", counting)
    resumed = train_projection(*data, make_head(), settings(objective), 3, tmp_path / "killed")
    assert trained == 12 - int(after)
    assert resumed.trace == whole.trace
    for one, other in zip(resumed.head.weights, whole.head.weights, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    if objective == "nlml":
        np.testing.assert_array_equal(resumed.precision, whole.precision)
        np.testing.assert_array_equal(resumed.noise, whole.noise)


@pytest.mark.parametrize("change", ["seed", "settings", "data"])
def test_a_checkpoint_of_another_training_is_left_alone(data, tmp_path, change):
    train, validation = data
    train_projection(train, validation, make_head(), settings("mse"), 0, tmp_path / "c")
    if change == "data":
        train = write_cache(tmp_path / "other", 150, 5)
    options = settings("mse", patience=9 if change == "settings" else 10)
    seed = int(change == "seed")
    found = train_projection(train, validation, make_head(), options, seed, tmp_path / "c")
    fresh = train_projection(train, validation, make_head(), options, seed, tmp_path / "new")
    assert found.trace == fresh.trace


def test_a_damaged_checkpoint_is_named(data, tmp_path):
    (tmp_path / "projection.pt").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"projection\.pt"):
        train_projection(*data, make_head(), settings("mse"), 0, tmp_path)


def test_seeds_differ_and_repeat(data, tmp_path):
    found = [
        train_projection(*data, make_head(), settings("nlml", max_epochs=2), seed, tmp_path / str(i))
        for i, seed in enumerate((0, 0, 1))
    ]
    assert found[0].trace == found[1].trace != found[2].trace
    one, same, other = (fresh_head(make_head(), NODE, 4, seed).weights[0][0] for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_loss_that_is_not_finite_names_epoch_and_structures(data, tmp_path):
    with pytest.raises(FitError, match=r"epoch \d+, batch of structures \d+, "):
        train_projection(*data, make_head(), settings("mse", learning_rate=1e30), 0, tmp_path)


def test_nothing_to_train_on(data, tmp_path):
    with FeatureWriter(tmp_path / "empty", FeatureMetadata(NODE, "orb", "1", "x")):
        pass
    empty = FeatureReader([tmp_path / "empty"])
    with pytest.raises(FitError, match="no atoms"):
        train_projection(empty, data[1], make_head(), settings("mse"), 0, tmp_path)
    with pytest.raises(FitError, match="no structures"):
        train_projection(data[0], empty, make_head(), settings("mse"), 0, tmp_path)
