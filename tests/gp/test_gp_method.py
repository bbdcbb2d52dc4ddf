"""The Gaussian process through the interface of a method."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from forceuq.backbones.head import ForceHead
from forceuq.calibration import ValidationLikelihood, fit_calibration
from forceuq.errors import ConfigurationError, DataError, FitError
from forceuq.features.cache import FeatureMetadata, FeatureReader, FeatureWriter
from forceuq.gp import exact
from forceuq.gp.iterative import ProbedLikelihood
from forceuq.methods import TrainingData, gp
from forceuq.metrics import evaluate
from forceuq.predictions import read_predictions, write_predictions

NODE, WIDTH = 5, 6
SMALL = {"subset": 60, "subset_evaluations": 15, "evaluations": 3}
LABELS = {"dataset": "d", "task": "t", "split": "validation", "method": "gp", "seed": 0}


def write_cache(directory, structures, seed, unit=1.0, width=NODE):
    rng = np.random.default_rng(seed)
    counts = np.resize((5, 1, 4), structures)
    n = int(counts.sum())
    hidden = rng.normal(size=(n, width))
    truth = np.random.default_rng(9).normal(size=(width, 3))
    noise = 0.1 * np.exp(0.4 * hidden[:, :1])
    zbl = rng.normal(size=(n, 3))
    force = np.tanh(hidden @ truth) + noise * rng.normal(size=(n, 3)) + zbl
    with FeatureWriter(directory, FeatureMetadata(width, "orb", "1", "x")) as writer:
        writer.add(
            np.repeat(np.arange(structures), counts),
            np.concatenate([np.arange(count) for count in counts]),
            rng.integers(1, 9, n),
            unit * force,
            unit * zbl,
            hidden * 2.0 ** np.arange(width),
        )
    return directory


def make_data(folder, unit=1.0):
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(WIDTH, NODE)) / 2.0 ** np.arange(NODE)
    head = ForceHead(
        weights=((weights.astype(np.float32), rng.normal(size=WIDTH).astype(np.float32)),),
        activation="silu",
        out_weight=np.zeros((3, WIDTH), dtype=np.float32),
        out_bias=np.zeros(3, dtype=np.float32),
        mean=np.zeros(1, dtype=np.float32),
        std=np.ones(1, dtype=np.float32),
        remove_mean=False,
        remove_torque=False,
    )
    head.save(folder / "head.safetensors")
    return TrainingData(
        train=(write_cache(folder / "train", 60, 0, unit), write_cache(folder / "more", 20, 1, unit)),
        validation=(write_cache(folder / "validation", 300, 2, unit),),
        head=folder / "head.safetensors",
    )


def fit(data, folder, seed=0, **changes):
    found = gp.fit(data, gp.Options(**{**SMALL, **changes}), seed, folder / "checkpoints")
    found.save(folder / "fit")
    return found


def joined(blocks, name):
    return np.concatenate([getattr(block, name) for block in blocks])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module", params=["rbf", "matern52"])
def fitted(request, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, fit(data, folder, kernel=request.param), folder / "fit"


def test_predictions_are_of_all_training_atoms_in_the_forces_units(fitted, data):
    kernel, found, _ = fitted
    blocks = list(found.predict(data.validation))
    known = list(FeatureReader(data.validation).blocks())
    for name, there in (("structure", "structure"), ("atom", "atom"), ("number", "number"), ("target", "force")):
        np.testing.assert_array_equal(joined(blocks, name), joined(known, there))
    # Densely, with everything written out.
    head = ForceHead.load(data.head)
    train = list(FeatureReader(data.train).blocks())
    x = head.penultimate(joined(train, "features")).astype(np.float64)
    y = joined(train, "force") - joined(train, "zbl")
    at = head.penultimate(joined(known, "features")).astype(np.float64)
    x, at = ((each - x.mean(0)) / x.std(0) for each in (x, at))
    lengthscale, outputscale, noise = found.tensors["hyperparameters"]
    scale2 = np.mean(y**2)

    def k(a, b):
        q = np.square(a[:, None] - b[None]).sum(-1) / lengthscale**2
        r = np.sqrt(5 * q)
        return outputscale * (np.exp(-q / 2) if kernel == "rbf" else (1 + r + 5 * q / 3) * np.exp(-r))

    inverse = np.linalg.inv(k(x, x) + noise * np.eye(len(x)))
    mean = k(at, x) @ inverse @ y + joined(known, "zbl")
    variance = scale2 * (outputscale - np.einsum("ij,jk,ik->i", k(at, x), inverse, k(at, x)))
    np.testing.assert_allclose(joined(blocks, "mean"), mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(joined(blocks, "spread")[:, 0], variance, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(joined(blocks, "floor")[:, 2], scale2 * noise, rtol=1e-10)
    assert not joined(blocks, "spread")[:, 3:].any()
    assert found.report["atoms"] == len(x)


def test_same_seed_same_bytes_and_loaded_predicts_what_was_saved(fitted, data, tmp_path):
    kernel, found, folder = fitted
    fit(data, tmp_path, kernel=kernel)
    for name in ("gp.safetensors", "options.json", "projection.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "fit" / name).read_bytes()
    for one, other in zip(found.predict(data.validation), gp.load(folder).predict(data.validation), strict=True):
        for name in ("mean", "floor", "spread"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    fit(data, tmp_path / "other", seed=1, kernel=kernel)
    assert (folder / "gp.safetensors").read_bytes() != (tmp_path / "other/fit/gp.safetensors").read_bytes()


def test_size_of_blocks_changes_nothing(fitted, data, monkeypatch):
    whole = list(fitted[1].predict(data.validation))
    original = FeatureReader.blocks
    monkeypatch.setattr(FeatureReader, "blocks", lambda reader, max_atoms=7, order=None: original(reader, 7, order))
    blocks = list(fitted[1].predict(data.validation))
    assert len(blocks) > len(whole)
    for name in ("mean", "spread"):
        np.testing.assert_allclose(joined(blocks, name), joined(whole, name), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("stage", ["subset", "all"])
def test_an_interrupted_fit_ends_at_the_same_bits(data, tmp_path, monkeypatch, stage):
    wanted = fit(data, tmp_path / "whole")
    stop = 3 if stage == "subset" else len(wanted.report["nlml"]["subset"]) + 1
    assert len(wanted.report["nlml"][stage]) > 1
    calls = []
    original = exact.nlml

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) > stop:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(exact, "nlml", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(data, tmp_path / "cut")
    monkeypatch.setattr(exact, "nlml", lambda *arguments: calls.append(1) or original(*arguments))
    done = len(calls) - 1
    found = fit(data, tmp_path / "cut")
    assert len(calls) - 1 - done == sum(map(len, wanted.report["nlml"].values())) - stop
    assert found.tensors["alpha"].tobytes() == wanted.tensors["alpha"].tobytes()
    assert found.report["nlml"] == wanted.report["nlml"]


def test_a_checkpoint_of_another_fit_is_left_alone_and_a_damaged_one_named(data, tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    wanted = gp.fit(data, gp.Options(**SMALL), 0, folder)
    assert json.loads((folder / "gp.json").read_text())["subset"]["values"]
    other = gp.fit(data, gp.Options(**SMALL), 1, folder)
    assert other.report["nlml"]["subset"] != wanted.report["nlml"]["subset"]
    (folder / "gp.json").write_text("{")
    with pytest.raises(DataError, match=r"gp\.json.*damaged checkpoint"):
        gp.fit(data, gp.Options(**SMALL), 0, folder)


def test_forces_in_another_unit_change_nothing_but_the_unit(fitted, data, tmp_path):
    kernel, found, _ = fitted
    unit = 23.06
    other = fit(make_data(tmp_path, unit), tmp_path, kernel=kernel)
    np.testing.assert_allclose(other.tensors["hyperparameters"], found.tensors["hyperparameters"], rtol=1e-6)
    here = list(found.predict(data.validation))
    there = list(other.predict([tmp_path / "validation"]))
    np.testing.assert_allclose(joined(there, "mean"), unit * joined(here, "mean"), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(joined(there, "spread"), unit**2 * joined(here, "spread"), rtol=1e-5, atol=1e-6)


def test_calibrated_coverage_in_distribution(fitted, data, tmp_path):
    found = fitted[1]
    write_predictions(tmp_path / "v.parquet", found.predict(data.validation), LABELS)
    calibration = fit_calibration(ValidationLikelihood(tmp_path / "v.parquet"), "decoupled", LABELS)
    test = write_cache(tmp_path / "test", 600, 11)
    write_predictions(tmp_path / "t.parquet", found.predict([test]), {**LABELS, "split": "id"})
    (metrics,) = evaluate(read_predictions(tmp_path / "t.parquet"), [(calibration.a, calibration.b)])
    assert metrics.values["coverage_90"][0] == pytest.approx(0.90, abs=0.03)


def test_too_many_atoms_are_refused_before_anything_is_computed(data, tmp_path, monkeypatch):
    monkeypatch.setattr(gp, "_read", lambda *a: pytest.fail("began"))
    with pytest.raises(FitError, match=r"of 266 training atoms takes 0\.0 GiB, and 0\.0 GiB .*fewer training"):
        fit(data, tmp_path, max_memory_gb=1e-4)
    assert exact.needed_bytes(15_000) < 12 * 2**30


def test_bad_input_is_named(data, fitted, tmp_path):
    with pytest.raises(ConfigurationError, match="starts_from"):
        gp.fit(data, gp.Options(), 0, tmp_path, starts_from=tmp_path)
    other = write_cache(tmp_path / "other", 4, 0, width=NODE + 1)
    with pytest.raises(DataError, match="holds 6 features an atom, the head takes 5"):
        gp.fit(replace(data, train=(other,)), gp.Options(), 0, tmp_path)
    with pytest.raises(DataError, match="holds 6 features"):
        next(fitted[1].predict([other]))
    zero = write_cache(tmp_path / "zero", 4, 0, unit=0.0)
    with pytest.raises(FitError, match="forces on all training atoms are zero"):
        gp.fit(replace(data, train=(zero,)), gp.Options(), 0, tmp_path)
    fitted[1].save(tmp_path / "fit")
    (tmp_path / "fit/gp.safetensors").write_bytes(b"x")
    with pytest.raises(DataError, match=r"gp\.safetensors"):
        gp.load(tmp_path / "fit")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigurationError, match="no GPU"):
            gp.fit(data, gp.Options(device="cuda"), 0, tmp_path)


CG = {"solver": "cg", "preconditioner_rank": 40, "cg_tolerance": 1e-7, "probes": 4}


@pytest.mark.parametrize("kernel", ["rbf", "matern52"])
def test_conjugate_gradients_predict_what_cholesky_does(data, tmp_path, kernel):
    one = fit(data, tmp_path / "one", kernel=kernel, solver="cholesky", evaluations=0)
    other = fit(data, tmp_path / "other", kernel=kernel, **CG, evaluations=0)
    np.testing.assert_array_equal(one.tensors["hyperparameters"], other.tensors["hyperparameters"])
    wanted, found, again = (
        list(each.predict(data.validation)) for each in (one, other, gp.load(tmp_path / "other/fit"))
    )
    for name in ("mean", "floor", "spread"):
        np.testing.assert_allclose(joined(found, name), joined(wanted, name), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(joined(found, name), joined(again, name))
    assert (one.report["solver"], other.report["solver"]) == ("cholesky", "cg")
    assert other.report["cg"]["rank"] == 40
    assert other.report["cg"]["iterations"] > 0
    assert other.report["cg"]["residual"] < 1e-7


def test_conjugate_gradients_in_blocks_of_another_size(data, tmp_path, monkeypatch):
    found = fit(data, tmp_path, **CG, evaluations=0)
    whole = list(found.predict(data.validation))
    monkeypatch.setattr("forceuq.gp.iterative._BATCH_ATOMS", 7)
    for name in ("mean", "spread"):
        np.testing.assert_allclose(
            joined(list(found.predict(data.validation)), name), joined(whole, name), rtol=1e-5, atol=1e-7
        )


def test_an_interrupted_fit_by_conjugate_gradients_ends_at_the_same_bits(data, tmp_path, monkeypatch):
    wanted = fit(data, tmp_path / "whole", **CG)
    calls = []
    original = ProbedLikelihood.estimate

    def interrupted(self, parameters):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, parameters)

    monkeypatch.setattr(ProbedLikelihood, "estimate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(data, tmp_path / "cut", **CG)
    found = fit(data, tmp_path / "cut", **CG)
    # The first evaluation is not made again.
    assert len(calls) == 1 + len(wanted.report["nlml"]["all"])
    assert (tmp_path / "cut/fit/gp.safetensors").read_bytes() == (tmp_path / "whole/fit/gp.safetensors").read_bytes()
    assert found.report["nlml"] == wanted.report["nlml"]


def test_conjugate_gradients_are_taken_where_cholesky_does_not_fit(data, tmp_path, monkeypatch):
    monkeypatch.setattr(exact, "needed_bytes", lambda n: 2**40 if n > 100 else 1)
    assert fit(data, tmp_path, evaluations=0, preconditioner_rank=40).report["solver"] == "cg"
    with pytest.raises(FitError, match="take `solver: cg`"):
        fit(data, tmp_path, solver="cholesky")
