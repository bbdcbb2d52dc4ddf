"""The shipped weights are those of their record, and the documentation quotes the record."""

import json
from pathlib import Path

from forceuq.backbones import orb
from forceuq.backbones.small.options import Options
from forceuq.files import file_digest

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "forceuq/backbones/weights/forceuq-small.safetensors"
RECORD = json.loads(WEIGHTS.with_suffix(".json").read_text())


def test_weights_are_those_of_the_record_and_small():
    assert file_digest(WEIGHTS) == RECORD["weights_sha256"]
    assert WEIGHTS.stat().st_size < 3_000_000
    backbone = orb.load(WEIGHTS, orb.Options(architecture="forceuq-small"))
    assert sum(p.numel() for p in backbone.model.parameters()) == RECORD["parameters"]


def test_the_rule_would_train_with_the_same_options():
    assert Options().model_dump(mode="json") == RECORD["options"]


def test_held_out_errors_are_far_below_the_mean_force_and_quoted_right():
    text = (ROOT / "docs/backbone-small.md").read_text()
    for name, errors in RECORD["held_out"].items():
        assert errors["mae"] < 0.2 * errors["mean_absolute_force"], name
        assert f"{errors['mae']:.3f} | {errors['mean_absolute_force']:.3f} |" in text, name
