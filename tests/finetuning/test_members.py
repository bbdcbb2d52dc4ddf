"""LoRA and fully trained members through the interface of a method."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from forceuq.backbones import orb
from forceuq.errors import ConfigurationError, DataError, FitError
from forceuq.finetuning import training
from forceuq.finetuning.member import build
from forceuq.methods import finetuned, load_method, lora
from forceuq.predictions import PredictionBlock, unpack_symmetric

KINDS = {
    "lora": (lora, {}),
    "finetuned": (finetuned, {}),
    "scratch": (finetuned, {"initial": "scratch"}),
}


def options(module, **changes):
    return module.Options(**{"max_epochs": 3, "batch_structures": 5, "variance_start": "zero-last", **changes})


def joined(blocks) -> PredictionBlock:
    blocks = list(blocks)
    names = PredictionBlock.__dataclass_fields__
    return PredictionBlock(**{n: np.concatenate([getattr(b, n) for b in blocks]) for n in names})


def assert_same(a: PredictionBlock, b: PredictionBlock) -> None:
    for name in PredictionBlock.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.fixture(scope="module", params=list(KINDS))
def fitted(request, case, tmp_path_factory):
    module, changes = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    chosen = options(module, **changes)
    fit = module.fit(case.data, chosen, 3, folder / "checkpoints")
    fit.save(folder / "fit")
    return module, chosen, fit, folder


def test_same_seed_same_bits_another_seed_another_member(fitted, case, tmp_path):
    module, chosen, fit, _ = fitted
    again = module.fit(case.data, chosen, 3, tmp_path / "again")
    other = module.fit(case.data, chosen, 4, tmp_path / "other")
    assert again.values.keys() == fit.values.keys()
    assert all(torch.equal(again.values[name], value) for name, value in fit.values.items())
    assert not all(torch.equal(other.values[name], value) for name, value in fit.values.items())


def test_loaded_predicts_what_was_saved(fitted, case):
    module, _, fit, folder = fitted
    loaded = module.load(folder / "fit", case.source)
    assert_same(joined(fit.predict([], case.test)), joined(loaded.predict([], case.test)))


def test_prediction_does_not_depend_on_the_batch(fitted, case):
    fit = fitted[2]
    one, many = (joined(fit.predict([], case.test, max_atoms=n)) for n in (1, 10_000))
    for name in ("mean", "floor"):
        np.testing.assert_allclose(getattr(one, name), getattr(many, name), rtol=1e-5, atol=1e-5)


def test_prediction_is_of_every_atom_and_both_parts(fitted, case):
    found = joined(fitted[2].predict([], case.test))
    assert np.unique(found.structure[found.part == 0]).tolist() == [20, 21, 22, 23]
    assert np.unique(found.structure[found.part == 1]).tolist() == list(range(14, 20))
    assert (found.number == 29).sum() == 4 * 2
    assert not found.spread.any()
    floor = unpack_symmetric(found.floor)
    diagonal = np.einsum("nii->ni", floor)
    assert (diagonal > 0).all()
    assert np.ptp(diagonal[:, 0]) > 0, "the variance depends on the atom"
    np.testing.assert_array_equal(floor, diagonal[:, :, None] * np.eye(3))


def test_an_interrupted_training_ends_at_the_same_bits(fitted, case, tmp_path, monkeypatch):
    module, chosen, fit, _ = fitted
    save = training._Run.save

    def interrupted(run, path):
        save(run, path)
        if run.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training._Run, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        module.fit(case.data, chosen, 3, tmp_path)
    monkeypatch.undo()
    epochs = []
    original = training._epoch
    monkeypatch.setattr(training, "_epoch", lambda run, *rest: (epochs.append(run.epoch), original(run, *rest))[1])
    resumed = module.fit(case.data, chosen, 3, tmp_path)
    assert epochs == [3]
    assert all(torch.equal(resumed.values[name], value) for name, value in fit.values.items())
    assert resumed.report["training"]["trace"] == fit.report["training"]["trace"]


def test_report_counts_what_is_trained(fitted):
    module, _, fit, _ = fitted
    counts = fit.report["parameters"]
    head = 16 * 20 + 20 + 20 * 3 + 3
    assert counts["force_head"] == counts["variance_head"] == head
    total = sum(p.numel() for p in orb._architecture("forceuq-small").parameters())
    assert counts["backbone"] == total
    if module is lora:
        # Rank 8 for 48 -> 24 and 24 -> 16, in the node and the edge MLP of two layers.
        assert counts["adapters"] == 2 * 2 * 8 * ((48 + 24) + (24 + 16))
        assert counts["trained"] == counts["adapters"] + 2 * head
    else:
        assert counts["body"] == total - head
        assert counts["trained"] == total + head


def test_training_lowers_the_loss(fitted):
    trace = [loss for _, loss in fitted[2].report["training"]["trace"]]
    assert len(trace) == 4
    assert min(trace) < trace[0]


@pytest.mark.parametrize("start", ["zero", "zero-last"])
def test_first_variance_is_one_at_the_backbones_scale(case, start):
    recipe = lora._recipe(options(lora, variance_start=start))
    backbone, network, _ = build(case.source, recipe, 0, "cpu")
    structures = [s for _, s in _structures(case)]
    with torch.no_grad():
        _, log_variance = network(orb.graphs(structures, orb.Options(architecture="forceuq-small")))
    assert torch.equal(log_variance, torch.zeros_like(log_variance))
    assert backbone.force_scale == pytest.approx(2.0**0.5)


def _structures(case):
    from forceuq.data.structures import read_structures

    return read_structures(case.folder / "structures.parquet")


def test_an_all_zero_variance_head_stays_the_same_for_all_atoms(case, tmp_path):
    fit = lora.fit(case.data, options(lora, variance_start="zero"), 0, tmp_path)
    floor = joined(fit.predict([], case.test)).floor
    assert np.ptp(floor, axis=0).max() == 0
    assert np.ptp(floor[0, :3]) > 0, "the components' variances are learned"


def test_lora_leaves_the_frozen_weights_as_they_are(case, tmp_path, monkeypatch):
    seen = {}
    original = training.train

    def spying(groups, loss, *rest, **more):
        network = loss.__self__
        trained = {id(p) for group in groups for p in group.parameters.values()}
        frozen = {n: p for n, p in network.named_parameters() if id(p) not in trained}
        before = {n: p.detach().clone() for n, p in frozen.items()}
        out = original(groups, loss, *rest, **more)
        seen.update(n=len(frozen), same=all(torch.equal(frozen[n], before[n]) for n in frozen))
        return out

    monkeypatch.setattr("forceuq.finetuning.member.train", spying)
    fit = lora.fit(case.data, options(lora), 0, tmp_path)
    assert seen["n"] > 20
    assert seen["same"]
    trained = {name.rpartition(".")[2] for name in fit.values if name.startswith("model.")}
    assert trained == {"lora_a", "lora_b"}


def test_heads_start_at_their_own_rate(case):
    groups = build(case.source, lora._recipe(lora.Options()), 0, "cpu")[2]
    assert {g.name: g.learning_rate for g in groups} == {
        "adapters": 1e-3,
        "force_head": 5e-4,
        "variance_head": 5e-4,
    }


def test_only_the_last_projection_is_drawn_anew(case):
    _, a, _ = build(case.source, lora._recipe(lora.Options()), 0, "cpu")
    _, b, _ = build(case.source, lora._recipe(lora.Options()), 1, "cpu")
    base = orb.load(case.source.weights, orb.Options(architecture="forceuq-small")).model
    one, other, own = (m.heads["forces"].mlp for m in (a.model, b.model, base))
    assert torch.equal(one[0].weight, own[0].weight)
    assert not torch.equal(one[2].weight, other[2].weight)
    assert not torch.equal(one[2].weight, own[2].weight)


@pytest.mark.parametrize("module", [lora, finetuned])
def test_a_loss_that_is_not_finite_is_named(case, module, tmp_path):
    with pytest.raises(FitError, match=r"epoch 1, training batch of structures .*s005.*the loss is (inf|nan)"):
        module.fit(case.with_nan(tmp_path), options(module), 0, tmp_path / "checkpoints")


def test_another_backbone_is_refused(fitted, case, tmp_path):
    module, _, _, folder = fitted
    with pytest.raises(ConfigurationError, match="with its backbone"):
        module.load(folder / "fit")
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other")
    with pytest.raises(DataError, match="is not the backbone"):
        module.load(folder / "fit", replace(case.source, weights=other))
    wrong = finetuned if module is lora else lora
    with pytest.raises(ConfigurationError, match="is a fit of kind"):
        wrong.load(folder / "fit", case.source)


def test_what_is_missing_is_said(fitted, case, tmp_path):
    module, chosen, fit, _ = fitted
    with pytest.raises(ConfigurationError, match="needs the backbone itself"):
        module.fit(replace(case.data, backbone=None), chosen, 0, tmp_path)
    with pytest.raises(FitError, match="needs structures"):
        module.fit(replace(case.data, train_structures=()), chosen, 0, tmp_path)
    with pytest.raises(DataError, match="predicts from structures"):
        next(fit.predict([]))
    with pytest.raises(ConfigurationError, match="starts_from"):
        module.fit(case.data, chosen, 0, tmp_path, starts_from=tmp_path)


def test_a_damaged_member_is_refused(fitted, case, tmp_path):
    module, _, fit, _ = fitted
    fit.save(tmp_path)
    path = tmp_path / "member.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"member\.safetensors: cannot be read"):
        module.load(tmp_path, case.source)


@pytest.mark.parametrize("kind", ["lora", "finetuned"])
def test_kinds_say_that_they_need_structures(kind):
    assert load_method(kind).NEEDS_STRUCTURES
