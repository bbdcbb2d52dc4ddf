"""Options of the force head's methods, and the covariance of residuals."""

import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from forceuq.errors import FitError
from forceuq.force_head.residuals import residual_covariance
from forceuq.methods import load_method, swag


def test_the_defaults_are_the_papers():
    found = swag.Options()
    assert (found.learning_rate, found.batch_structures, found.patience) == (1e-3, 64, 10)
    assert (found.swag_epochs, found.rank, found.samples) == (40, 20, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 41}, "rank 41 needs as many epochs"),
        ({"rank": 1}, "greater than or equal to 2"),
        ({"samples": 1}, "greater than or equal to 2"),
        ({"swag_epoch": 3}, "swag_epoch"),
        ({"learning_rate": 0}, "greater than 0"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValidationError, match=message):
        swag.Options(**options)


def test_residuals_without_a_covariance():
    rows = np.arange(4)
    flat = np.random.default_rng(0).normal(size=(4, 3)) * [1, 1, 0]
    with pytest.raises(FitError, match="of 4 atoms do not span three dimensions"):
        residual_covariance([(rows, flat)])
    with pytest.raises(FitError, match="no training atoms"):
        residual_covariance([])
    flat[2, 1] = np.nan
    with pytest.raises(FitError, match="structure 2: a training residual is"):
        residual_covariance([(rows, flat)])


@pytest.mark.parametrize("kind", ["mse_head", "swag", "backbone_forces"])
def test_kinds_are_cheap_to_import(kind):
    assert load_method(kind).Options()
    heavy = "('torch', 'scipy', 'sklearn', 'gpytorch')"
    code = f"import sys, forceuq.methods.{kind}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
