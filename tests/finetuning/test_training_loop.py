"""The training loop, on a loss of three numbers, and what a member's training reports, on its own predictions."""

import logging
import math

import numpy as np
import pytest
import torch
from torch import nn

from forceuq.backbones import orb
from forceuq.data.structures import read_structures
from forceuq.finetuning import training
from forceuq.finetuning.processes import Processes
from forceuq.finetuning.source import frames_of
from forceuq.finetuning.training import Group, Trained, TrainingSettings, train
from forceuq.methods import blip, finetuned, lora
from forceuq.predictions import unpack_symmetric

SMALL = orb.Options(architecture="forceuq-small")


@pytest.fixture(scope="module")
def frames(case):
    """Return training and validation structures in batches of five: the last ones are of other sizes."""
    backbone = orb.load(case.source.weights, SMALL)
    parts = (case.data.train_structures, case.data.validation_structures)
    return tuple(frames_of(backbone, case.source, part, 5) for part in parts)


class Toy:
    """Two groups of parameters that only their sum fits to the forces, and what their loss has seen."""

    def __init__(self, frames, folder, rates=(0.1, 0.1)):
        self.frames, self.folder = frames, folder
        self.parameters = [nn.Parameter(torch.full((3,), 2.0)) for _ in rates]
        self.groups = [
            Group(str(i), {f"{i}.w": p}, rate) for i, (p, rate) in enumerate(zip(self.parameters, rates, strict=True))
        ]
        self.seen: list[tuple[tuple[str, ...], float, int, float]] = []

    def loss(self, batch):
        value = (sum(self.parameters) - batch.target).square().mean()
        self.seen.append((batch.structure_ids, value.item(), sum(batch.sizes), torch.rand(1).item()))
        return value

    def train(self, max_epochs=3, patience=10, seed=0) -> Trained:
        settings = TrainingSettings(patience, max_epochs)
        processes = Processes("cpu")
        return train(self.groups, self.loss, *self.frames, settings, seed, "key", self.folder / "toy.pt", processes)

    def passes(self) -> list[list[tuple[tuple[str, ...], float, int, float]]]:
        """Return what was seen by pass: validation, then training and validation in turn."""
        counts = [math.ceil(part.n_structures / 5) for part in self.frames]
        rest, found = list(self.seen), []
        while rest:
            count = counts[(len(found) + 1) % 2]
            found.append(rest[:count])
            rest = rest[count:]
        return found


def test_reported_losses_are_means_over_atoms(frames, tmp_path):
    toy = Toy(frames, tmp_path)
    trace = toy.train().trace
    assert len({size for one in toy.passes() for _, _, size, _ in one}) > 2
    means = [np.average([v for _, v, _, _ in one], weights=[n for _, _, n, _ in one]) for one in toy.passes()]
    assert [loss for entry in trace for loss in entry][1:] == pytest.approx(means, rel=1e-12)


def test_every_group_is_trained_at_its_own_rate(frames, tmp_path):
    toy = Toy(frames, tmp_path, rates=(0.1, 0.01))
    toy.train(max_epochs=1)
    # Both have the same gradients, and Adam's steps do not depend on their size.
    first, second = (parameter.detach() - 2.0 for parameter in toy.parameters)
    torch.testing.assert_close(first, 10 * second, rtol=1e-4, atol=0)
    assert first.abs().min() > 0


def test_order_and_noise_follow_from_seed_and_epoch_and_those_of_validation_from_the_seed(frames, tmp_path):
    orders, draws = {}, {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        toy = Toy(frames, tmp_path / name)
        toy.folder.mkdir()
        toy.train(max_epochs=2, seed=seed)
        orders[name], draws[name] = ([[batch[i] for batch in one] for one in toy.passes()] for i in (0, 3))
    for found in (orders, draws):
        assert found["a"] == found["b"]
        one, other = found["a"], found["c"]
        assert one[0] == one[2] == one[4], "validation is the same every epoch"
        trained = [tuple(each) for each in (one[1], one[3], other[1], other[3])]
        assert len(set(trained)) == 4, "training is not, nor with another seed"
    assert orders["a"][0] == orders["c"][0]
    assert len({draw for i in (0, 1, 3) for draw in draws["a"][i]}) == 2 + 3 + 3


class Killed(BaseException):
    pass


def test_the_best_epoch_is_restored_after_patience_and_after_an_interruption(frames, tmp_path, monkeypatch):
    """At a wild learning rate the last epoch is not the best; the result is as if stopped at the best."""

    def toy(name):
        (tmp_path / name).mkdir(exist_ok=True)
        return Toy(frames, tmp_path / name, rates=(3.0, 2.0))

    whole, short, before, after = toy("whole"), toy("short"), toy("killed"), toy("killed")
    found = whole.train(max_epochs=200, patience=4)
    assert (found.stopped, found.epochs) == ("patience", found.best_epoch + 4)
    losses = [validation for _, validation in found.trace]
    assert losses[found.best_epoch] == min(losses) < losses[0]
    short.train(max_epochs=found.best_epoch)

    save = training._Run.save

    def dying(run, path):
        save(run, path)
        if run.epoch == found.best_epoch + 2:
            raise Killed

    monkeypatch.setattr(training._Run, "save", dying)
    with pytest.raises(Killed):
        before.train(max_epochs=200, patience=4)
    monkeypatch.undo()
    assert after.train(max_epochs=200, patience=4).trace == found.trace
    assert len(after.passes()) < len(whole.passes()), "it went on, and did not start anew"
    for other in (short, after):
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters, other.parameters, strict=True))


@pytest.mark.parametrize(("module", "more"), [(lora, {}), (blip, {"inference_width": 8, "passes": 2})])
def test_a_checkpoint_beyond_a_lowered_max_epochs_is_not_taken_up(case, tmp_path, caplog, module, more):
    def fit(max_epochs, name):
        options = module.Options(max_epochs=max_epochs, batch_structures=5, **more)
        return module.fit(case.data, options, 3, tmp_path / name)

    def same(one, other):
        assert all(torch.equal(one.values[name], value) for name, value in other.values.items())
        assert one.values.keys() == other.values.keys()
        assert one.report["training"] == other.report["training"]

    caplog.set_level(logging.INFO, "forceuq.finetuning.training")
    long = fit(3, "a")
    lowered = fit(2, "a")
    assert "was trained for 3 epochs, more than max_epochs, 2; starting anew" in caplog.text
    assert lowered.report["training"]["epochs"] == 2
    same(lowered, fit(2, "b"))
    assert "resuming" not in caplog.text
    same(fit(3, "a"), long)
    assert "resuming after epoch 2" in caplog.text, "raised again, training goes on"


@pytest.mark.parametrize("module", [lora, finetuned])
def test_predictions_are_the_heads_and_their_likelihood_is_the_reported_loss(case, tmp_path, module):
    options = module.Options(max_epochs=2, batch_structures=5, variance_start="zero-last")
    fit = module.fit(case.data, options, 3, tmp_path)
    (found,) = fit.predict([], case.data.validation_structures)
    structures = [s for _, s in read_structures(case.folder / "structures.parquet")][14:20]
    variance = np.einsum("nii->ni", unpack_symmetric(found.floor))

    backbone, network = fit.network()
    graph = orb.graphs(structures, SMALL)
    with torch.no_grad():
        features = backbone.node_features(graph)
        repulsion = backbone.zbl(graph).double()
        force, log_variance = backbone.head_forces(features, graph).double(), network.variance(features).double()
    assert repulsion.abs().max() > 0.01
    assert log_variance.abs().max() > 0.001
    np.testing.assert_allclose(found.mean, force + repulsion, rtol=1e-5, atol=1e-5)
    # 2 eV²/Å² is the variance of the case's force head.
    np.testing.assert_allclose(variance, 2.0 * log_variance.exp(), rtol=1e-5)

    forces = torch.from_numpy(np.concatenate([s.forces for s in structures]))
    normal = torch.distributions.Normal(torch.from_numpy(found.mean), torch.from_numpy(variance).sqrt())
    nll = -normal.log_prob(forces).mean().item()
    training_report = fit.report["training"]
    reported = training_report["trace"][training_report["best_epoch"]][1]
    # The loss is that of forces in units of the head's standard deviation.
    assert reported + 0.5 * math.log(2.0) == pytest.approx(nll, rel=1e-5)
