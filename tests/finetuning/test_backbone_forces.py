"""The backbone's own forces through the interface of a method."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from forceuq.backbones import orb
from forceuq.calibration import ValidationLikelihood, fit_calibration
from forceuq.data.splits import read_part
from forceuq.data.structures import read_structures
from forceuq.errors import ConfigurationError, DataError, FitError
from forceuq.features.cache import FeatureReader
from forceuq.features.extract import extract_features
from forceuq.methods import backbone_forces, load_method
from forceuq.predictions import PredictionBlock, unpack_symmetric, write_predictions


def joined(blocks) -> PredictionBlock:
    blocks = list(blocks)
    names = PredictionBlock.__dataclass_fields__
    return PredictionBlock(**{n: np.concatenate([getattr(b, n) for b in blocks]) for n in names})


def fit(data, tmp_path, **options):
    return backbone_forces.fit(data, backbone_forces.Options(**options), 0, tmp_path / "checkpoints")


def one_by_one(case, part):
    """Forces of each structure alone: the head's with net force and torque taken away, then ZBL added."""
    options = orb.Options(architecture="forceuq-small")
    backbone = orb.load(case.source.weights, options)
    forces, targets = [], []
    for _, structure in read_structures(part.structures, read_part(part.splits, part.name)):
        graph = orb.graphs([structure], options)
        with torch.no_grad():
            head = backbone.head_forces(backbone.node_features(graph), graph)
            forces.append((head + backbone.zbl(graph)).double().numpy())
        targets.append(structure.forces)
    return np.concatenate(forces), np.concatenate(targets)


def test_predictions_are_the_backbones_with_its_residuals_covariance(case, tmp_path):
    found = joined(fit(case.data, tmp_path).predict([], case.test))
    expected = [one_by_one(case, part) for part in case.test]
    np.testing.assert_allclose(found.mean, np.concatenate([forces for forces, _ in expected]), atol=1e-5)
    np.testing.assert_array_equal(found.target, np.concatenate([target for _, target in expected]))
    forces, target = one_by_one(case, case.data.train_structures[0])
    r = target - forces
    floor = unpack_symmetric(found.floor)
    np.testing.assert_allclose(floor, np.broadcast_to(r.T @ r / len(r), floor.shape), rtol=1e-4, atol=1e-7)
    assert not found.spread.any()


def test_predictions_are_in_the_order_of_the_feature_caches(case, tmp_path):
    for part in case.test:
        extract_features(
            part.structures,
            part.splits,
            part.name,
            case.source.weights,
            "orb",
            dict(case.source.options),
            tmp_path / part.name,
            device="cpu",
        )
    blocks = list(FeatureReader([tmp_path / part.name for part in case.test]).blocks())
    found = joined(fit(case.data, tmp_path).predict([], case.test))
    for ours, theirs in (("structure", "structure"), ("atom", "atom"), ("number", "number"), ("target", "force")):
        cached = np.concatenate([getattr(block, theirs) for block in blocks])
        np.testing.assert_array_equal(getattr(found, ours), cached)
    np.testing.assert_array_equal(found.part, np.concatenate([[block.part_index] * len(block) for block in blocks]))


def test_save_load_predict_and_again(case, tmp_path):
    first, second = fit(case.data, tmp_path), fit(case.data, tmp_path)
    first.save(tmp_path / "a")
    second.save(tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        if path.name != "report.json":
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    loaded = backbone_forces.load(tmp_path / "a", case.source)
    one, other = (joined(each.predict([], case.test)) for each in (first, loaded))
    for name in PredictionBlock.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    report = loaded.report
    assert (report["structures"], report["parameters"]) == (14, {"trained": 0})
    assert report["atoms"] == len(one_by_one(case, case.data.train_structures[0])[0])
    assert report["seconds"]["residuals"] > 0


@pytest.mark.parametrize("batch_atoms", [1, 7])
def test_the_batch_changes_nothing(case, tmp_path, batch_atoms):
    one, many = (joined(fit(case.data, tmp_path, batch_atoms=n).predict([], case.test)) for n in (batch_atoms, 10_000))
    for name in ("mean", "floor"):
        np.testing.assert_allclose(getattr(one, name), getattr(many, name), rtol=1e-5, atol=1e-5)


def test_calibration_says_that_there_is_no_spread(case, tmp_path):
    labels = {"dataset": "d", "task": "t", "split": "validation", "method": "m", "seed": 0}
    write_predictions(tmp_path / "p.parquet", fit(case.data, tmp_path).predict([], case.test[1:]), labels)
    found = fit_calibration(ValidationLikelihood(tmp_path / "p.parquet"), "decoupled", labels)
    assert not found.b_identified
    assert found.mahalanobis_after == pytest.approx(3.0)


def test_what_is_missing_is_said(case, tmp_path):
    with pytest.raises(ConfigurationError, match="needs the backbone itself"):
        fit(replace(case.data, backbone=None), tmp_path)
    with pytest.raises(FitError, match="no training atoms"):
        fit(replace(case.data, train_structures=()), tmp_path)
    with pytest.raises(ConfigurationError, match="starts_from"):
        backbone_forces.fit(case.data, backbone_forces.Options(), 0, tmp_path, starts_from=tmp_path)
    found = fit(case.data, tmp_path)
    with pytest.raises(DataError, match="predicts from structures"):
        next(found.predict([]))
    found.save(tmp_path / "fit")
    with pytest.raises(ConfigurationError, match="with its backbone"):
        backbone_forces.load(tmp_path / "fit")
    (tmp_path / "other").write_bytes(b"other")
    with pytest.raises(DataError, match="is not the backbone"):
        backbone_forces.load(tmp_path / "fit", replace(case.source, weights=tmp_path / "other"))
    (tmp_path / "fit" / "noise.safetensors").unlink()
    with pytest.raises(DataError, match=r"noise\.safetensors"):
        backbone_forces.load(tmp_path / "fit", case.source)


def test_forces_that_are_not_finite_are_named(case, tmp_path, monkeypatch):
    def broken(backbone, batch):
        forces = original(backbone, batch)
        forces[3] = torch.nan
        return forces

    original = orb.OrbBackbone.forces
    monkeypatch.setattr(orb.OrbBackbone, "forces", broken)
    with pytest.raises(FitError, match=r"structure 1: a training residual is .*nan"):
        fit(case.data, tmp_path)


def test_it_says_that_it_needs_structures():
    assert load_method("backbone_forces").NEEDS_STRUCTURES
