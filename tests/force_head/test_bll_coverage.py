"""Calibrated coverage of the Bayesian last layer on the heteroscedastic forces of this folder."""

from dataclasses import replace

import pytest

from forceuq.calibration import ValidationLikelihood, fit_calibration
from forceuq.methods import bll
from forceuq.metrics import evaluate
from forceuq.predictions import read_predictions, write_predictions

LABELS = {"dataset": "d", "task": "t", "split": "validation", "method": "bll", "seed": 0}
VARIANTS = {
    "pretrained": {"projection": "pretrained"},
    "mse": {"projection": "mse"},
    "nlml": {"projection": "nlml", "hyperparameters": "nlml"},
    "nlml-evidence": {"projection": "nlml"},
    "homoscedastic": {"projection": "mse", "homoscedastic": True},
}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_calibrated_coverage_in_distribution(variant, cache, data, tmp_path):
    train, validation, test = (cache(tmp_path / name, n, 11 + n) for name, n in (("a", 600), ("b", 300), ("c", 601)))
    options = bll.Options(**VARIANTS[variant], max_epochs=30, learning_rate=1e-2)
    found = bll.fit(replace(data, train=(train,), validation=(validation,)), options, 0, tmp_path / "checkpoints")
    write_predictions(tmp_path / "v.parquet", found.predict([validation]), LABELS)
    write_predictions(tmp_path / "t.parquet", found.predict([test]), {**LABELS, "split": "test"})
    calibration = fit_calibration(ValidationLikelihood(tmp_path / "v.parquet"), "decoupled", LABELS)
    assert calibration.b_identified == (variant != "homoscedastic")
    (result,) = evaluate(read_predictions(tmp_path / "t.parquet"), [(calibration.a, calibration.b)])
    assert result.values["coverage_90"][0] == pytest.approx(0.9, abs=0.03)
