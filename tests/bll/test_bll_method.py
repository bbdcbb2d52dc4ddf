import json
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from forceuq.backbones.head import ForceHead
from forceuq.errors import ConfigurationError, DataError
from forceuq.features import writer
from forceuq.features.cache import FeatureMetadata, FeatureReader, FeatureWriter
from forceuq.methods import TrainingData, kinds, load_method
from forceuq.predictions import unpack_symmetric

NODE, WIDTH = 6, 10
bll = load_method("bll")
Options = bll.Options


def write_cache(directory, structures, seed, atoms=5, node=NODE):
    rng = np.random.default_rng(seed)
    n = structures * atoms
    features = rng.normal(size=(n, node))
    truth = np.random.default_rng(99).normal(size=(node, 3))
    zbl = rng.normal(size=(n, 3))
    force = np.tanh(features @ truth) + 0.05 * rng.normal(size=(n, 3)) + zbl
    with FeatureWriter(directory, FeatureMetadata(node, "orb", "1", "x")) as writer:
        writer.add(
            np.repeat(np.arange(structures) * 2, atoms),
            np.tile(np.arange(atoms), structures),
            rng.integers(1, 9, n),
            force,
            zbl,
            features,
        )
    return directory


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    head = ForceHead(
        weights=[(rng.normal(size=(WIDTH, NODE)).astype(np.float32), rng.normal(size=WIDTH).astype(np.float32))],
        activation="silu",
        out_weight=rng.normal(size=(3, WIDTH)).astype(np.float32),
        out_bias=np.zeros(3, dtype=np.float32),
        mean=np.zeros(1, dtype=np.float32),
        std=np.ones(1, dtype=np.float32),
        remove_mean=True,
        remove_torque=True,
    )
    head.save(tmp_path / "head.safetensors")
    return TrainingData(
        train=(write_cache(tmp_path / "train", 100, 0), write_cache(tmp_path / "more", 60, 3)),
        validation=(write_cache(tmp_path / "val", 30, 1),),
        head=tmp_path / "head.safetensors",
    )


def fit(data, tmp_path, name, seed=0, starts_from=None, **options):
    options = Options(**{"max_epochs": 3, "batch_structures": 16, "learning_rate": 1e-2, **options})
    fitted = bll.fit(data, options, seed, tmp_path / f"{name}-checkpoints", starts_from)
    fitted.save(tmp_path / name)
    return fitted


CASES = [
    {"projection": "pretrained"},
    {"projection": "mse"},
    {"projection": "mse", "width": 12},
    {"projection": "nlml", "hyperparameters": "nlml"},
    {"projection": "nlml"},
    {"projection": "pretrained", "prior": "isotropic"},
]


def joined(blocks, name):
    return np.concatenate([getattr(block, name) for block in blocks])


@pytest.mark.parametrize("options", CASES, ids=str)
def test_fit_save_load_predict(data, tmp_path, options):
    fitted = fit(data, tmp_path, "fit", **options)
    test = [write_cache(tmp_path / "test", 40, 7), write_cache(tmp_path / "ood", 20, 8)]
    blocks = list(bll.load(tmp_path / "fit").predict(test))
    known = list(FeatureReader(test).blocks())
    for name in ("structure", "atom", "number"):
        np.testing.assert_array_equal(joined(blocks, name), joined(known, name))
    np.testing.assert_array_equal(joined(blocks, "target"), joined(known, "force"))
    np.testing.assert_array_equal(joined(blocks, "part"), [0] * 200 + [1] * 100)
    for name in ("mean", "floor", "spread"):
        np.testing.assert_array_equal(joined(blocks, name), joined(list(fitted.predict(test)), name))
    # Eq. 8 from the posterior, ZBL added back.
    x = joined(known, "features")
    phi = fitted.head.penultimate(x).astype(float)
    u = np.einsum("nd,nd->n", phi, np.linalg.solve(fitted.posterior.factor @ fitted.posterior.factor.T, phi.T).T)
    np.testing.assert_allclose(joined(blocks, "mean"), phi @ fitted.posterior.mean + joined(known, "zbl"), atol=1e-9)
    np.testing.assert_allclose(
        unpack_symmetric(joined(blocks, "spread")), u[:, None, None] * fitted.posterior.noise, rtol=1e-6
    )
    np.testing.assert_allclose(
        unpack_symmetric(joined(blocks, "floor")), np.broadcast_to(fitted.posterior.noise, (300, 3, 3))
    )
    error = np.abs(joined(blocks, "mean") - joined(blocks, "target")).mean()
    assert error < 0.75 * np.abs(joined(known, "force") - joined(known, "zbl")).mean()
    # The head's own last layer is the posterior mean.
    np.testing.assert_allclose(phi @ fitted.head.out_weight.T, phi @ fitted.posterior.mean, atol=1e-4)


@pytest.mark.parametrize("options", CASES, ids=str)
def test_a_second_fit_writes_the_same_bytes(data, tmp_path, options):
    fit(data, tmp_path, "a", **options)
    fit(data, tmp_path, "b", **options)
    for path in (tmp_path / "a").iterdir():
        if path.name != "report.json":
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_nlml_uses_what_it_learned_and_evidence_does_not(data, tmp_path):
    learned = fit(data, tmp_path, "nlml", projection="nlml", hyperparameters="nlml")
    np.testing.assert_array_equal(learned.posterior.precision, learned.learned.precision)
    np.testing.assert_array_equal(learned.posterior.noise, learned.learned.noise)
    fitted = fit(data, tmp_path, "evidence", projection="nlml")
    np.testing.assert_array_equal(fitted.learned.precision, learned.learned.precision)
    assert fitted.report["evidence"]["nlml"] < learned.report["evidence"]["nlml"]


def test_the_isotropic_prior_has_one_precision_and_starts_from_the_other(data, tmp_path):
    diagonal = fit(data, tmp_path, "diagonal", projection="mse")
    isotropic = fit(data, tmp_path, "isotropic", starts_from=tmp_path / "diagonal", projection="mse", prior="isotropic")
    assert isotropic.report["projection"] == {"reused": True}
    assert np.ptp(isotropic.posterior.precision) == 0.0 < np.ptp(diagonal.posterior.precision)
    assert diagonal.report["evidence"]["nlml"] < isotropic.report["evidence"]["nlml"]


@pytest.mark.parametrize("hyperparameters", ["evidence", "nlml"])
def test_starting_from_a_fit_is_training_the_same_projection(data, tmp_path, hyperparameters):
    first = "nlml" if hyperparameters == "evidence" else "evidence"
    fit(data, tmp_path, "first", projection="nlml", hyperparameters=first)
    direct = fit(data, tmp_path, "direct", projection="nlml", hyperparameters=hyperparameters)
    started = fit(
        data, tmp_path, "started", starts_from=tmp_path / "first", projection="nlml", hyperparameters=hyperparameters
    )
    assert started.report["projection"] == {"reused": True}
    assert not (tmp_path / "started-checkpoints").exists()
    assert len(direct.report["projection"]["trace"]) == 4
    for name in ("posterior", "projection", "learned"):
        one, other = (tmp_path / d / f"{name}.safetensors" for d in ("direct", "started"))
        assert one.read_bytes() == other.read_bytes()


def test_starting_from_another_projection_is_refused(data, tmp_path):
    fit(data, tmp_path, "first", projection="mse")
    with pytest.raises(ConfigurationError, match='"mse".*"nlml"'):
        fit(data, tmp_path, "second", starts_from=tmp_path / "first", projection="nlml")
    (tmp_path / "first" / "options.json").write_text('{"kind": "swag"}')
    with pytest.raises(ConfigurationError, match="swag"):
        fit(data, tmp_path, "second", starts_from=tmp_path / "first", projection="mse")
    with pytest.raises(DataError, match=r"options\.json"):
        fit(data, tmp_path, "second", starts_from=tmp_path / "nowhere", projection="mse")


def test_predictions_do_not_depend_on_the_blocks(data, tmp_path, monkeypatch):
    fitted = fit(data, tmp_path, "fit", projection="pretrained")
    test = write_cache(tmp_path / "test", 40, 7)
    one = list(fitted.predict([test]))
    monkeypatch.setattr(writer, "ROW_GROUP_ATOMS", 7)
    other = list(fitted.predict([write_cache(tmp_path / "again", 40, 7)]))
    assert len(one) == 1 < len(other)
    for name in ("mean", "spread", "floor"):
        np.testing.assert_allclose(joined(other, name), joined(one, name), rtol=1e-5, atol=1e-6)


def test_zbl_is_not_learned(data, tmp_path):
    """Adding anything to force and ZBL alike changes no fit and shifts every prediction by it."""

    def shifted(directory):
        (block,) = FeatureReader([directory]).blocks()
        shift = 50 * np.random.default_rng(5).normal(size=block.force.shape)
        target = tmp_path / f"shifted-{directory.name}"
        with FeatureWriter(target, FeatureMetadata(NODE, "orb", "1", "x")) as writer:
            writer.add(
                block.structure, block.atom, block.number, block.force + shift, block.zbl + shift, block.features
            )
        return target, shift

    other = replace(data, train=tuple(shifted(d)[0] for d in data.train))
    one = fit(data, tmp_path, "one", projection="pretrained")
    two = fit(other, tmp_path, "two", projection="pretrained")
    np.testing.assert_allclose(two.posterior.mean, one.posterior.mean, rtol=1e-6, atol=1e-8)
    directory, shift = shifted(data.validation[0])
    mean, moved = (joined(list(one.predict([d])), "mean") for d in (data.validation[0], directory))
    np.testing.assert_allclose(moved, mean + shift, atol=1e-9)


def test_a_cache_of_another_backbone_is_refused(data, tmp_path):
    fitted = fit(data, tmp_path, "fit", projection="pretrained")
    narrow = write_cache(tmp_path / "narrow", 10, 0, node=4)
    with pytest.raises(DataError, match="4 features an atom, the head takes 6"):
        list(fitted.predict([narrow]))
    for projection in ("pretrained", "mse"):
        with pytest.raises(DataError, match="the head takes"):
            fit(replace(data, train=(narrow,)), tmp_path, "other", projection=projection)


def test_the_report_is_json_with_the_cost(data, tmp_path):
    fit(data, tmp_path, "fit", projection="nlml")
    report = json.loads((tmp_path / "fit" / "report.json").read_text())
    assert set(report["seconds"]) == {"projection", "statistics", "hyperparameters"}
    assert (report["atoms"], report["structures"], report["features"]) == (800, 160, WIDTH)
    assert len(report["projection"]["trace"]) == 4
    assert report["evidence"]["gradient_norm"] < 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projection": "mse", "hyperparameters": "nlml"}, "evidence"),
        ({"projection": "nlml", "hyperparameters": "nlml", "prior": "isotropic"}, "evidence"),
        ({"projection": "pretrained", "width": 5}, "trained"),
        ({"projektion": "mse"}, "projektion"),
        ({"projection": "nll"}, "nlml"),
        ({"learning_rate": 0}, "greater than 0"),
        ({"patience": 0}, "greater than or equal to 1"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValidationError, match=message):
        Options(**options)


def test_kinds():
    assert "bll" in kinds()
    with pytest.raises(ConfigurationError, match="unknown kind of method 'bl'; nearest: bll"):
        load_method("bl")


def test_options_are_cheap_to_import():
    import subprocess
    import sys

    code = "import sys, forceuq.methods.bll; print([m for m in ('torch', 'scipy', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_predictions_can_be_written(data, tmp_path):
    from forceuq.predictions import read_predictions, write_predictions

    fitted = fit(data, tmp_path, "fit", projection="pretrained")
    known = list(fitted.predict(data.validation))
    labels = {"dataset": "d", "task": "t", "split": "validation", "method": "bll", "seed": 0}
    write_predictions(tmp_path / "p.parquet", fitted.predict(data.validation), labels)
    back = list(read_predictions(tmp_path / "p.parquet"))
    for name in ("structure", "part", "mean", "floor", "spread"):
        np.testing.assert_array_equal(joined(back, name), joined(known, name))


def test_homoscedastic_has_the_same_mean_and_no_spread(data, tmp_path):
    test = [write_cache(tmp_path / "test", 40, 7)]
    ordinary = fit(data, tmp_path, "ordinary", projection="mse")
    plain = fit(data, tmp_path, "plain", projection="mse", homoscedastic=True)
    one, other = list(ordinary.predict(test)), list(bll.load(tmp_path / "plain").predict(test))
    for name in ("mean", "floor"):
        np.testing.assert_array_equal(joined(other, name), joined(one, name))
    assert joined(one, "spread").any()
    assert not joined(other, "spread").any()
    assert plain.report["parameters"] == ordinary.report["parameters"]


@pytest.mark.parametrize("homoscedastic", [True, False])
def test_homoscedastic_and_ordinary_fits_start_from_each_other(data, tmp_path, homoscedastic):
    first = fit(data, tmp_path, "first", projection="mse", homoscedastic=not homoscedastic)
    second = fit(
        data, tmp_path, "second", projection="mse", homoscedastic=homoscedastic, starts_from=tmp_path / "first"
    )
    assert second.report["projection"] == {"reused": True}
    np.testing.assert_array_equal(second.posterior.mean, first.posterior.mean)


@pytest.mark.parametrize(
    ("options", "projection", "width"),
    [
        ({"projection": "pretrained"}, 0, WIDTH),
        ({"projection": "mse"}, NODE * WIDTH + WIDTH, WIDTH),
        ({"projection": "mse", "width": 4}, NODE * 4 + 4, 4),
    ],
)
def test_the_report_counts_what_is_trained(data, tmp_path, options, projection, width):
    counts = fit(data, tmp_path, "fit", **options).report["parameters"]
    assert counts == {"projection": projection, "last_layer": 3 * width, "trained": projection + 3 * width}
