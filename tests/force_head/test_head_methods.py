"""The trained force head and SWAG through the interface of a method."""

import json
from dataclasses import replace

import numpy as np
import pytest

from forceuq.backbones.head import ForceHead
from forceuq.bll import run as training_run
from forceuq.calibration import ValidationLikelihood, fit_calibration
from forceuq.errors import ConfigurationError, DataError, FitError
from forceuq.features import writer as feature_writer
from forceuq.features.cache import FeatureReader
from forceuq.force_head.swag import Moments
from forceuq.methods import mse_head, swag
from forceuq.metrics import evaluate
from forceuq.predictions import pack_symmetric, read_predictions, unpack_symmetric, write_predictions

KINDS = {"mse_head": mse_head, "swag": swag}
FIRST = {"max_epochs": 6, "batch_structures": 16, "learning_rate": 1e-2}
SMALL = {"mse_head": FIRST, "swag": {**FIRST, "swag_epochs": 5, "rank": 3}}
LABELS = {"dataset": "d", "task": "t", "split": "validation", "method": "m", "seed": 0}


def fit(kind, data, folder, seed=0, starts_from=None, **changes):
    options = KINDS[kind].Options(**{**SMALL[kind], **changes})
    fitted = KINDS[kind].fit(data, options, seed, folder.with_name(f"{folder.name}-checkpoints"), starts_from)
    fitted.save(folder)
    return fitted


def joined(blocks, name):
    return np.concatenate([getattr(block, name) for block in blocks])


def assert_same_bytes(one, other):
    files = sorted(path.name for path in one.iterdir() if path.name != "report.json")
    assert files == sorted(path.name for path in other.iterdir() if path.name != "report.json")
    for name in files:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def residuals(reader, forces):
    return np.concatenate([block.force - block.zbl - forces(block.features) for block in reader.blocks()])


@pytest.fixture(scope="module", params=sorted(KINDS))
def fitted(request, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "fit"
    return request.param, fit(request.param, data, folder), folder


def test_loaded_predicts_what_was_saved(fitted, parts):
    kind, one, folder = fitted
    blocks, again = list(one.predict(parts)), list(KINDS[kind].load(folder).predict(parts))
    known = list(FeatureReader(parts).blocks())
    for name in ("structure", "atom", "number"):
        np.testing.assert_array_equal(joined(blocks, name), joined(known, name))
    np.testing.assert_array_equal(joined(blocks, "target"), joined(known, "force"))
    np.testing.assert_array_equal(joined(blocks, "part"), _parts(known))
    for name in ("mean", "floor", "spread"):
        np.testing.assert_array_equal(joined(again, name), joined(blocks, name))


def _parts(blocks):
    return np.concatenate([np.full(len(block), block.part_index) for block in blocks])


def test_same_seed_same_bytes_another_seed_another_fit(fitted, data, tmp_path):
    kind, _, folder = fitted
    fit(kind, data, tmp_path / "again")
    assert_same_bytes(folder, tmp_path / "again")
    fit(kind, data, tmp_path / "other", seed=1)
    name = "swag.safetensors" if kind == "swag" else "head.safetensors"
    assert (folder / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_the_head_predicts_its_forces_with_the_residuals_covariance(data, parts, tmp_path):
    found = fit("mse_head", data, tmp_path / "fit")
    blocks, known = list(found.predict(parts)), list(FeatureReader(parts).blocks())
    mean = np.concatenate([found.head.forces(block.features) + block.zbl for block in known])
    np.testing.assert_array_equal(joined(blocks, "mean"), mean)
    r = residuals(FeatureReader(data.train), found.head.forces)
    expected = pack_symmetric(r.T @ r / len(r))
    np.testing.assert_allclose(joined(blocks, "floor"), np.broadcast_to(expected, (len(mean), 6)), rtol=1e-12)
    assert not joined(blocks, "spread").any()
    start = ForceHead.load(data.head)
    assert np.square(r).mean() < 0.3 * np.square(residuals(FeatureReader(data.train), start.forces)).mean()


def test_all_layers_are_trained_in_the_heads_own_normalisation(data, tmp_path):
    found = fit("mse_head", data, tmp_path / "fit")
    start = ForceHead.load(data.head)
    pairs = [*zip(found.head.weights[0], start.weights[0], strict=True)]
    pairs += [(found.head.out_weight, start.out_weight), (found.head.out_bias, start.out_bias)]
    assert all((one != other).all() for one, other in pairs)
    np.testing.assert_array_equal(found.head.mean, start.mean)
    np.testing.assert_array_equal(found.head.std, start.std)
    assert found.report["parameters"] == {"trained": 6 * 10 + 10 + 3 * 10 + 3}
    # The trace is the error of the heads themselves: first the backbone's, then the best epoch's.
    report = found.report["training"]
    validation = FeatureReader(data.validation)
    for epoch, head in ((0, start), (report["best_epoch"], found.head)):
        error = np.square(residuals(validation, head.forces)).mean()
        assert report["trace"][epoch][1] == pytest.approx(error, rel=1e-4)
    losses = [validation for _, validation in report["trace"]]
    assert losses[report["best_epoch"]] == min(losses)


def test_swag_is_the_gaussian_of_the_iterates_after_the_best_head(data, parts, tmp_path, monkeypatch):
    seen, observe = [], Moments.observe

    def spying(moments, tensors):
        seen.append(np.concatenate([tensor.detach().numpy().ravel() for tensor in tensors.values()]).astype(float))
        observe(moments, tensors)

    monkeypatch.setattr(Moments, "observe", spying)
    found = fit("swag", data, tmp_path / "fit")
    first = fit("mse_head", data, tmp_path / "first")
    w, weights = np.array(seen), found.posterior.weights
    assert len(w) == 5
    np.testing.assert_allclose(weights.mean, w.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(weights.variance, w.var(axis=0), rtol=1e-6, atol=1e-15)
    expected = [w[t] - w[: t + 1].mean(axis=0) for t in (2, 3, 4)]
    np.testing.assert_allclose(weights.deviations, expected, atol=1e-12)
    np.testing.assert_array_equal(found.posterior.head.out_weight, first.head.out_weight)
    validation = np.square(residuals(FeatureReader(data.validation), first.head.forces)).mean()
    assert found.report["collection"]["trace"][0][1] == pytest.approx(validation, rel=1e-4)
    assert found.report["training"]["trace"] == first.report["training"]["trace"]
    # Mean, floor and spread from the samples, one by one.
    blocks, known = list(found.predict(parts)), list(FeatureReader(parts).blocks())
    heads = found.posterior.heads(10, 0)
    forces = np.array([np.concatenate([head.forces(block.features) for block in known]) for head in heads])
    np.testing.assert_allclose(joined(blocks, "mean"), forces.mean(axis=0) + joined(known, "zbl"), atol=1e-12)
    spread = unpack_symmetric(joined(blocks, "spread"))
    for atom in (0, 17, len(spread) - 1):
        np.testing.assert_allclose(spread[atom], np.cov(forces[:, atom].T, bias=True), rtol=1e-9, atol=1e-15)
    assert np.ptp(spread[:, 0, 0]) > 0
    r = residuals(FeatureReader(data.train), lambda x: np.mean([head.forces(x) for head in heads], axis=0))
    np.testing.assert_allclose(unpack_symmetric(joined(blocks, "floor"))[3], r.T @ r / len(r), rtol=1e-10)


def test_swag_sees_the_structures_in_other_orders_than_the_first_stage(data, tmp_path, monkeypatch):
    epochs, original = [], training_run.Batches.epoch

    def spying(batches, seed, epoch):
        epochs.append(epoch)
        return original(batches, seed, epoch)

    monkeypatch.setattr(training_run.Batches, "epoch", spying)
    fit("swag", data, tmp_path / "fit")
    assert len(set(epochs)) == len(epochs) == 6 + 5


def test_swag_from_a_trained_head_is_swag(data, tmp_path):
    fit("mse_head", data, tmp_path / "first")
    started = fit("swag", data, tmp_path / "started", starts_from=tmp_path / "first")
    fit("swag", data, tmp_path / "direct")
    assert_same_bytes(tmp_path / "started", tmp_path / "direct")
    assert started.report["training"] == {"reused": True}
    assert not (tmp_path / "started-checkpoints" / "head.pt").exists()


def test_the_second_stage_goes_on_as_the_first_would_have(data, tmp_path):
    """Where the first stage's best epoch is its last, the second is but more of it, unless Adam starts anew."""
    long = fit("mse_head", data, tmp_path / "long", max_epochs=11)
    short, fresh = (fit("swag", data, tmp_path / state, adam_state=state) for state in ("best", "fresh"))
    assert short.report["training"]["best_epoch"] == 6
    expected = np.array(long.report["training"]["trace"][7:12])
    trace, other = (np.array(each.report["collection"]["trace"][1:]) for each in (short, fresh))
    np.testing.assert_allclose(trace, expected, rtol=2e-4)
    assert np.abs(other / expected - 1).max() > 1e-2
    assert [each.report["collection"]["adam_state"] for each in (short, fresh)] == ["best", "fresh"]


def test_a_head_that_got_no_better_has_no_adam_state(data, tmp_path):
    found = fit("mse_head", data, tmp_path / "first", learning_rate=5.0, patience=1)
    assert found.report["training"]["best_epoch"] == 0
    assert mse_head.load(tmp_path / "first").adam == {}
    started = fit("swag", data, tmp_path / "s", learning_rate=5.0, patience=1, starts_from=tmp_path / "first")
    assert started.report["collection"]["adam_state"] == "fresh"


def test_what_swag_cannot_start_from(data, tmp_path):
    fit("mse_head", data, tmp_path / "first")
    with pytest.raises(ConfigurationError, match='"learning_rate": 0.01.*"learning_rate": 0.02'):
        fit("swag", data, tmp_path / "x", starts_from=tmp_path / "first", learning_rate=0.02)
    with pytest.raises(ConfigurationError, match="seed 0, this fit has seed 1"):
        fit("swag", data, tmp_path / "x", seed=1, starts_from=tmp_path / "first")
    fit("swag", data, tmp_path / "swag")
    with pytest.raises(ConfigurationError, match="is a fit of kind 'swag', not 'mse_head'"):
        fit("swag", data, tmp_path / "x", starts_from=tmp_path / "swag")
    with pytest.raises(DataError, match=r"options\.json"):
        fit("swag", data, tmp_path / "x", starts_from=tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match="starts_from"):
        fit("mse_head", data, tmp_path / "x", starts_from=tmp_path / "first")


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("kind", "after"), [("mse_head", 2), ("mse_head", 3.5), ("swag", 2), ("swag", 6), ("swag", 7), ("swag", 9.5)]
)
def test_an_interrupted_fit_ends_at_the_same_bits(data, tmp_path, monkeypatch, kind, after):
    whole = fit(kind, data, tmp_path / "whole", seed=3)
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
        fit(kind, data, tmp_path / "killed", seed=3)
    assert not (tmp_path / "killed").exists()
    trained = 0

    def counting(run, batches, seed):
        nonlocal trained
        trained += 1
        return original(run, batches, seed)

    monkeypatch.setattr(training_run, "train_epoch", counting)
    resumed = fit(kind, data, tmp_path / "killed", seed=3)
    assert trained == (6 if kind == "mse_head" else 11) - int(after)
    assert_same_bytes(tmp_path / "whole", tmp_path / "killed")
    for stage in ("training", "collection"):
        assert resumed.report.get(stage) == whole.report.get(stage)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"swag_epochs": 6}, {"rank": 4}, {"learning_rate": 2e-2}, "data", "head"]
)
def test_checkpoints_of_another_fit_are_left_alone(data, cache, tmp_path, change):
    fit("swag", data, tmp_path / "fit")
    settings = {} if isinstance(change, str) else change
    if change == "data":
        data = replace(data, train=(cache(tmp_path / "other", 60, 5),))
    elif change == "head":
        head = ForceHead.load(data.head)
        replace(head, out_weight=2 * head.out_weight).save(tmp_path / "head.safetensors")
        data = replace(data, head=tmp_path / "head.safetensors")
    fit("swag", data, tmp_path / "fit", **settings)
    fit("swag", data, tmp_path / "fresh", **settings)
    assert_same_bytes(tmp_path / "fit", tmp_path / "fresh")


@pytest.mark.parametrize("name", ["head.pt", "swag.pt"])
def test_a_damaged_checkpoint_is_named(data, tmp_path, name):
    (tmp_path / "fit-checkpoints").mkdir()
    (tmp_path / "fit-checkpoints" / name).write_bytes(b"damaged")
    with pytest.raises(DataError, match=rf"{name}: not a checkpoint"):
        fit("swag", data, tmp_path / "fit")


def test_predictions_do_not_depend_on_the_blocks(fitted, cache, tmp_path, monkeypatch):
    _, found, _ = fitted
    one = list(found.predict([cache(tmp_path / "one", 40, 7)]))
    monkeypatch.setattr(feature_writer, "ROW_GROUP_ATOMS", 6)
    other = list(found.predict([cache(tmp_path / "other", 40, 7)]))
    assert len(one) == 1 < len(other)
    for name in ("mean", "spread", "floor"):
        np.testing.assert_allclose(joined(other, name), joined(one, name), rtol=1e-5, atol=1e-5)


def test_a_loss_that_is_not_finite_is_named(fitted, data, cache, tmp_path):
    kind = fitted[0]

    def overflow(force):
        force[17] = 1e200

    broken = replace(data, train=(cache(tmp_path / "broken", 60, 0, change=overflow),))
    # Atom 17 is in the sixth structure, whose row is 10.
    with pytest.raises(FitError, match=r"epoch 1, batch of structures (.*, )?10(,.*)?: the mse loss is inf"):
        fit(kind, broken, tmp_path / "fit")


def test_a_collection_that_diverges_is_named(data, tmp_path, monkeypatch):
    original = training_run.train_epoch

    def diverging(run, batches, seed):
        if run.name == "swag mse" and run.epoch == 3:
            run.restore({name: value * np.nan for name, value in run.tensors.items()})
        return original(run, batches, seed)

    monkeypatch.setattr(training_run, "train_epoch", diverging)
    with pytest.raises(FitError, match=r"epoch 3, batch of structures .*: the swag mse loss is nan"):
        fit("swag", data, tmp_path / "fit")


def test_without_atoms(fitted, data, cache, tmp_path):
    kind, found, _ = fitted
    empty = cache(tmp_path / "empty", 0, 0)
    with pytest.raises(FitError, match="no atoms in .*empty"):
        fit(kind, replace(data, train=(empty,)), tmp_path / "fit")
    with pytest.raises(FitError, match="no structures in .*empty"):
        fit(kind, replace(data, validation=(empty,)), tmp_path / "fit")
    with pytest.raises(DataError, match=r"p\.parquet.*no atoms"):
        write_predictions(tmp_path / "p.parquet", found.predict([empty]), LABELS)


def test_single_atoms_alone(fitted, data, cache, tmp_path):
    kind = fitted[0]
    single = replace(data, train=(cache(tmp_path / "single", 40, 0, sizes=(1,)),))
    found = fit(kind, single, tmp_path / "fit")
    (block,) = found.predict(single.train)
    assert len(block) == 40
    assert np.isfinite(block.mean).all()


def test_another_backbones_cache_is_refused(fitted, data, cache, tmp_path):
    kind, found, _ = fitted
    narrow = cache(tmp_path / "narrow", 10, 0, node=4)
    with pytest.raises(DataError, match=r"narrow: holds 4 features an atom, the head takes 6"):
        next(found.predict([narrow]))
    for changes in ({"train": (narrow,)}, {"validation": (narrow,)}):
        with pytest.raises(DataError, match="narrow: holds 4 features"):
            fit(kind, replace(data, **changes), tmp_path / "fit")


def test_damaged_fits_are_refused(fitted, tmp_path):
    kind, found, folder = fitted
    module = KINDS[kind]
    other = "swag" if kind == "mse_head" else "mse_head"
    with pytest.raises(ConfigurationError, match=f"kind '{kind}', not '{other}'"):
        KINDS[other].load(folder)
    for file in ("noise.safetensors", "head.safetensors", "options.json"):
        found.save(tmp_path)
        (tmp_path / file).write_bytes(b"{}damaged")
        with pytest.raises(DataError, match=file.replace(".", r"\.")):
            module.load(tmp_path)
    (tmp_path / "options.json").write_text(json.dumps({"kind": kind, "seed": 0, "options": {"rate": 1}}))
    with pytest.raises(DataError, match=r"(?s)options\.json.*rate"):
        module.load(tmp_path)


def test_the_report_has_the_cost(data, tmp_path):
    fit("swag", data, tmp_path / "fit")
    report = json.loads((tmp_path / "fit" / "report.json").read_text())
    assert set(report["seconds"]) == {"training", "collection", "residuals"}
    assert all(seconds > 0 for seconds in report["seconds"].values())
    atoms = FeatureReader(data.train).n_atoms
    assert (report["atoms"], report["structures"], report["samples"]) == (atoms, 90, 10)
    assert (report["parameters"], report["passes"]) == ({"trained": 103}, {"backbone": 1, "head": 10})
    assert (report["training"]["epochs"], report["collection"]["epochs"]) == (6, 5)
    assert len(report["collection"]["trace"]) == 6


def test_calibrated_coverage_in_distribution(fitted, cache, data, tmp_path):
    kind = fitted[0]
    train, validation, test = (cache(tmp_path / name, n, 11 + n) for name, n in (("a", 600), ("b", 300), ("c", 601)))
    changes = {"max_epochs": 40, "learning_rate": 1e-2, "batch_structures": 64}
    found = fit(kind, replace(data, train=(train,), validation=(validation,)), tmp_path / "fit", **changes)
    write_predictions(tmp_path / "validation.parquet", found.predict([validation]), LABELS)
    write_predictions(tmp_path / "test.parquet", found.predict([test]), {**LABELS, "split": "test"})
    calibration = fit_calibration(ValidationLikelihood(tmp_path / "validation.parquet"), "decoupled", LABELS)
    assert calibration.b_identified == (kind == "swag")
    (result,) = evaluate(read_predictions(tmp_path / "test.parquet"), [(calibration.a, calibration.b)])
    assert result.values["coverage_90"][0] == pytest.approx(0.9, abs=0.03)


def test_every_split_has_the_same_samples(data, parts, tmp_path):
    found = fit("swag", data, tmp_path / "fit")
    together, alone = list(found.predict(parts)), list(found.predict(parts[1:]))
    for name in ("mean", "spread"):
        np.testing.assert_array_equal(joined(alone, name), joined(together, name)[joined(together, "part") == 1])
