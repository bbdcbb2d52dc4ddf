"""BLIP through the interface of a method."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import molecule

from forceuq.calibration import ValidationLikelihood, fit_calibration
from forceuq.data.splits import write_splits
from forceuq.data.structures import StructureWriter, structure
from forceuq.errors import ConfigurationError, DataError, FitError
from forceuq.finetuning import training
from forceuq.methods import StructurePart, blip, load_method, lora
from forceuq.metrics import evaluate
from forceuq.predictions import PredictionBlock, unpack_symmetric, write_predictions

SEED = 3


def options(**changes):
    chosen = {"max_epochs": 3, "batch_structures": 5, "passes": 4, "inference_width": 8, "initial_scale": 0.05}
    return blip.Options(**{**chosen, **changes})


def joined(blocks) -> PredictionBlock:
    blocks = list(blocks)
    names = PredictionBlock.__dataclass_fields__
    return PredictionBlock(**{n: np.concatenate([getattr(b, n) for b in blocks]) for n in names})


def assert_same(a: PredictionBlock, b: PredictionBlock) -> None:
    for name in PredictionBlock.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.fixture(scope="module")
def fitted(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip")
    fit = blip.fit(case.data, options(), SEED, folder / "checkpoints")
    fit.save(folder / "fit")
    return fit, folder


@pytest.fixture(scope="module")
def found(fitted, case):
    return joined(fitted[0].predict([], case.test))


def same_values(one, other) -> bool:
    assert one.values.keys() == other.values.keys()
    return all(torch.equal(one.values[name], value) for name, value in other.values.items())


def test_same_seed_same_bits_another_seed_another_fit(fitted, case, tmp_path):
    fit, _ = fitted
    again = blip.fit(case.data, options(), SEED, tmp_path / "again")
    assert same_values(again, fit)
    assert np.array_equal(again.floor, fit.floor)
    assert not same_values(blip.fit(case.data, options(), 4, tmp_path / "other"), fit)


def test_files_are_the_same_bytes(fitted, case, tmp_path):
    fit, folder = fitted
    fit.save(tmp_path)
    for name in ("blip.safetensors", "options.json"):
        assert (tmp_path / name).read_bytes() == (folder / "fit" / name).read_bytes()


def test_loaded_predicts_what_was_saved(fitted, found, case):
    loaded = blip.load(fitted[1] / "fit", case.source)
    assert_same(found, joined(loaded.predict([], case.test)))


def test_predicting_again_gives_the_same_bits(fitted, found, case):
    torch.manual_seed(123)
    assert_same(found, joined(fitted[0].predict([], case.test)))


def test_prediction_does_not_depend_on_the_batch(fitted, case):
    one, many = (joined(fitted[0].predict([], case.test, max_atoms=n)) for n in (1, 10_000))
    assert np.abs(many.spread).max() > 1e-4
    for name in ("mean", "floor", "spread"):
        np.testing.assert_allclose(getattr(one, name), getattr(many, name), rtol=1e-5, atol=1e-5)


def test_prediction_does_not_depend_on_what_else_is_predicted(fitted, found, case):
    alone = joined(fitted[0].predict([], case.test[1:]))
    second = found.part == 1
    np.testing.assert_allclose(alone.mean, found.mean[second], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(alone.spread, found.spread[second], rtol=1e-5, atol=1e-5)


def test_prediction_is_of_every_atom_and_both_parts(found):
    assert np.unique(found.structure[found.part == 0]).tolist() == [20, 21, 22, 23]
    assert np.unique(found.structure[found.part == 1]).tolist() == list(range(14, 20))
    assert (found.number == 29).sum() == 4 * 2


def test_mean_and_spread_are_those_of_the_passes(fitted, found, case, graph_of, structures):
    """Against passes made one structure at a time, with NumPy's moments."""
    from forceuq.blip.noise import StructureNoise

    fit = fitted[0]
    backbone, network = fit.network()
    assert not network.training
    for row in (20, 21, 23):
        graph = graph_of([structures[row]])
        sizes = {"nodes": graph.n_node.tolist(), "edges": graph.n_edge.tolist()}
        with torch.no_grad():
            passes = [
                network(graph, StructureNoise([f"s{row:03d}"], sizes, SEED, index, "cpu")) + backbone.zbl(graph)
                for index in range(4)
            ]
        forces = torch.stack(passes).double().numpy()
        mine = (found.structure == row) & (found.part == 0)
        np.testing.assert_allclose(found.mean[mine], forces.mean(0), rtol=1e-4, atol=1e-5)
        covariance = unpack_symmetric(found.spread[mine])
        for atom in range(forces.shape[1]):
            expected = np.cov(forces[:, atom].T, bias=True)
            np.testing.assert_allclose(covariance[atom], expected, rtol=1e-3, atol=1e-6)


def test_noise_is_on_in_prediction_and_a_lone_atom_has_no_spread(found):
    # Orb takes the net force away: that of a single atom is zero in every pass.
    lone = found.structure % 4 == 3
    assert lone.sum() == 3
    trace = found.spread[:, :3].sum(axis=1)
    assert (trace[~lone] > 1e-8).all()
    assert not trace[lone].any()
    assert np.isfinite(found.mean).all()


@pytest.mark.parametrize("residuals", ["passes", "mean-weights"])
def test_floor_is_the_covariance_of_the_training_residuals(case, tmp_path, residuals, graph_of, structures):
    fit = blip.fit(case.data, options(residuals=residuals, max_epochs=1), SEED, tmp_path)
    trained_on = joined(fit.predict([], case.data.train_structures))
    mean = trained_on.mean
    if residuals == "mean-weights":
        backbone, network = fit.network()
        with torch.no_grad():
            graph = graph_of(structures[:14])
            mean = (network(graph, None) + backbone.zbl(graph)).double().numpy()
    apart = trained_on.target - mean
    expected = apart.T @ apart / len(apart)
    np.testing.assert_allclose(fit.floor, expected, rtol=1e-5)
    np.testing.assert_allclose(unpack_symmetric(trained_on.floor), np.tile(fit.floor, (len(mean), 1, 1)))
    assert np.ptp(trained_on.floor, axis=0).max() == 0


def test_an_interrupted_training_ends_at_the_same_bits(fitted, found, case, tmp_path, monkeypatch):
    fit, _ = fitted
    save = training._Run.save

    def interrupted(run, path):
        save(run, path)
        if run.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training._Run, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        blip.fit(case.data, options(), SEED, tmp_path)
    monkeypatch.undo()
    epochs = []
    original = training._epoch
    monkeypatch.setattr(training, "_epoch", lambda run, *rest: (epochs.append(run.epoch), original(run, *rest))[1])
    resumed = blip.fit(case.data, options(), SEED, tmp_path)
    assert epochs == [3]
    assert same_values(resumed, fit)
    assert resumed.report["training"]["trace"] == fit.report["training"]["trace"]
    assert_same(found, joined(resumed.predict([], case.test)))


def test_training_draws_its_noise_anew_every_epoch_and_validation_does_not(case, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "forceuq.blip.noise.fresh_noise", lambda _, like: drawn.append(torch.randn_like(like)) or drawn[-1]
    )
    fit = blip.fit(case.data, options(max_epochs=2, batch_structures=24), SEED, tmp_path)
    layers = len(fit.report["alpha"])
    # One batch of each part: the start, two epochs, and the terms for the report; the first layer's numbers of each.
    start, first, before, second, after, _ = drawn[::layers]
    assert torch.equal(start, before)
    assert torch.equal(before, after)
    assert first.shape == second.shape
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    "changes", [{"kl_weight": 0.2}, {"prior_probability": 0.3}, {"link": "odds"}, {"inference_learning_rate": 0.1}]
)
def test_a_checkpoint_of_another_training_is_not_taken_up(fitted, case, tmp_path, changes):
    before = blip.fit(case.data, options(max_epochs=1), SEED, tmp_path)
    after = blip.fit(case.data, options(max_epochs=1, **changes), SEED, tmp_path)
    assert after.report["training"]["epochs"] == 1
    assert not same_values(before, after)


def test_report_says_what_was_done(fitted):
    report = fitted[0].report
    counts = report["parameters"]
    assert counts["force_head"] == 16 * 20 + 20 + 20 * 3 + 3
    # 48 -> 24 -> 16 with biases and a norm's 16 weights, in node and edge MLP of two layers.
    assert counts["messages"] == 2 * 2 * (48 * 24 + 24 + 24 * 16 + 16 + 16)
    # Node inputs: 16 features; edge inputs: 8 radial functions and twice 16; each -> 8 -> 8 -> 4.
    assert counts["inference"] == sum(n * 8 + 8 + 8 * 8 + 8 + 8 * 4 + 4 for n in (16, 8 + 32))
    assert counts["trained"] == counts["force_head"] + counts["messages"] + counts["inference"]
    assert report["passes"] == {"backbone": 4, "head": 4}
    assert set(report["seconds"]) == {"training", "residuals"}
    assert len(report["training"]["trace"]) == 4
    assert len(report["alpha"]) == 8
    for scales in report["alpha"].values():
        assert 0 < scales["min"] <= scales["mean"] <= scales["max"]
    assert {name.split(".")[3] for name in report["alpha"]} == {"_node_mlp", "_edge_mlp"}
    edges = [scales for name, scales in report["alpha"].items() if "_edge_mlp" in name]
    assert all(scales["min"] < scales["max"] for scales in edges), "scales depend on the input"
    assert report["validation"]["kl"] >= 2.0
    assert report["validation"]["data"] > 0


def test_training_lowers_the_objective_and_moves_the_scales_to_the_prior(case, tmp_path):
    chosen = options(max_epochs=8, kl_weight=10.0, inference_learning_rate=0.03)
    report = blip.fit(case.data, chosen, 0, tmp_path).report
    trace = [loss for _, loss in report["training"]["trace"]]
    assert min(trace) < trace[0]
    means = [scales["mean"] for scales in report["alpha"].values()]
    assert min(means) > 0.1, "from 0.05 towards p / (1 - p) = 0.25"


def test_a_loss_that_is_not_finite_is_named(case, tmp_path):
    with pytest.raises(FitError, match=r"epoch 1, training batch of structures .*s005.*the loss is (inf|nan)"):
        blip.fit(case.with_nan(tmp_path), options(), 0, tmp_path / "checkpoints")


def test_another_backbone_and_another_kind_are_refused(fitted, case, tmp_path):
    folder = fitted[1] / "fit"
    with pytest.raises(ConfigurationError, match="with its backbone"):
        blip.load(folder)
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other")
    with pytest.raises(DataError, match="is not the backbone"):
        blip.load(folder, replace(case.source, weights=other))
    with pytest.raises(ConfigurationError, match="is a fit of kind 'blip'"):
        lora.load(folder, case.source)
    with pytest.raises(DataError, match="fit it again"):
        blip.load(tmp_path, case.source)


def test_what_is_missing_is_said(fitted, case, tmp_path):
    with pytest.raises(ConfigurationError, match="needs the backbone itself"):
        blip.fit(replace(case.data, backbone=None), options(), 0, tmp_path)
    with pytest.raises(FitError, match="needs structures"):
        blip.fit(replace(case.data, train_structures=()), options(), 0, tmp_path)
    with pytest.raises(DataError, match="predicts from structures"):
        next(fitted[0].predict([]))
    with pytest.raises(ConfigurationError, match="starts_from"):
        blip.fit(case.data, options(), 0, tmp_path, starts_from=tmp_path)
    nothing = replace(case.data.train_structures[0], name="nothing")
    for data in (replace(case.data, train_structures=(nothing,)), replace(case.data, validation_structures=(nothing,))):
        with pytest.raises((DataError, FitError), match="nothing"):
            blip.fit(data, options(), 0, tmp_path)
    with pytest.raises(DataError, match="nothing"):
        next(fitted[0].predict([], (nothing,)))


def test_residuals_without_a_covariance_are_refused(case, tmp_path):
    with StructureWriter(tmp_path / "structures.parquet") as writer:
        for index in range(3):
            writer.add(
                structure(f"h{index}", "g", numbers=[1], positions=np.zeros((1, 3)), forces=np.zeros((1, 3)), cell=None)
            )
    write_splits(tmp_path / "splits.parquet", [f"h{i}" for i in range(3)], np.arange(3), ["a"] * 3, expected=("a",))
    part = StructurePart(tmp_path / "structures.parquet", tmp_path / "splits.parquet", "a")
    with pytest.raises(FitError, match="residuals of 3 atoms do not span three dimensions"):
        blip.fit(replace(case.data, train_structures=(part,)), options(), 0, tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "other", "missing"])
def test_a_damaged_fit_is_refused(fitted, case, tmp_path, damage):
    fitted[0].save(tmp_path)
    path = tmp_path / "blip.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "missing":
        path.unlink()
    else:
        blip.fit(case.data, options(inference_width=9, max_epochs=1), 0, tmp_path / "c").save(tmp_path / "f")
        path.write_bytes((tmp_path / "f" / "blip.safetensors").read_bytes())
    with pytest.raises(DataError, match=r"blip\.safetensors: (cannot be read|holds other parameters)"):
        blip.load(tmp_path, case.source)


def test_unknown_and_impossible_options_are_refused():
    for wrong in ({"prior_probability": 1.0}, {"passes": 1}, {"rank": 8}, {"initial_scale": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            blip.Options(**wrong)


def test_kind_says_that_it_needs_structures():
    assert load_method("blip").NEEDS_STRUCTURES


def test_calibrated_coverage_on_heteroscedastic_data(case, tmp_path):
    """90 % intervals, decoupled calibration, hydrogen noisier than oxygen and carbon."""
    random = np.random.default_rng(0)
    names, n = ("H2O", "CH4"), 420
    with StructureWriter(tmp_path / "structures.parquet") as writer:
        for index in range(n):
            atoms = molecule(names[index % 2])
            shift = 0.05 * random.normal(size=(len(atoms), 3))
            sigma = np.where(atoms.numbers == 1, 0.35, 0.2)[:, None]
            forces = -20 * shift + sigma * random.normal(size=shift.shape)
            writer.add(
                structure(
                    f"m{index}", "g", numbers=atoms.numbers, positions=atoms.positions + shift, forces=forces, cell=None
                )
            )
    parts = ["train"] * 120 + ["validation"] * 120 + ["id"] * 180
    write_splits(
        tmp_path / "splits.parquet",
        [f"m{i}" for i in range(n)],
        np.arange(n),
        parts,
        expected=("train", "validation", "id"),
    )
    part = {name: StructurePart(tmp_path / "structures.parquet", tmp_path / "splits.parquet", name) for name in parts}
    data = replace(case.data, train_structures=(part["train"],), validation_structures=(part["validation"],))
    fit = blip.fit(data, options(max_epochs=6, batch_structures=20, learning_rate=5e-3), 0, tmp_path / "c")
    path = tmp_path / "validation.parquet"
    write_predictions(path, fit.predict([], (part["validation"],)), {"split": "validation"})
    calibration = fit_calibration(ValidationLikelihood(path), "decoupled", {"split": "validation"})
    assert calibration.b_identified
    found = evaluate(fit.predict([], (part["id"],)), [(calibration.a, calibration.b)])[0]
    assert found.values["coverage_90"][0] == pytest.approx(0.9, abs=0.03)
