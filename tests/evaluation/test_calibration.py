import dataclasses
import json
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.optimize import minimize, minimize_scalar
from scipy.stats import multivariate_normal

from forceuq import calibration
from forceuq.calibration import (
    ValidationLikelihood,
    fit_calibration,
    fit_calibrations,
    nll_surface,
    read_calibrations,
)
from forceuq.errors import DataError, FitError
from forceuq.predictions import read_predictions, unpack_symmetric, write_predictions
from forceuq.whitening import whiten


def dense_nll(blocks, a, b):
    """Eq. (13) by scipy's density, atom by atom, a force component."""
    return -np.mean(
        [
            multivariate_normal(mean=m, cov=a * unpack_symmetric(f) + b * unpack_symmetric(s)).logpdf(t) / 3
            for x in blocks
            for t, m, f, s in zip(x.target, x.mean, x.floor, x.spread, strict=True)
        ]
    )


@pytest.fixture
def likelihood(tmp_path, metadata):
    def make(*blocks):
        write_predictions(tmp_path / "v.parquet", blocks, metadata)
        return ValidationLikelihood(tmp_path / "v.parquet")

    return make


@pytest.mark.parametrize("kind", ["bll", "ensemble", "zero"])
@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.3, 1e2), (2.0, 1e6)])
def test_whitened_scores_are_the_dense_ones(block, kind, a, b):
    x = block(40, kind=kind)
    nll, mahalanobis = whiten(x).scores(a, b)
    covariance = a * unpack_symmetric(x.floor) + b * unpack_symmetric(x.spread)
    error = x.target - x.mean
    reference = np.einsum("ni,nij,nj->n", error, np.linalg.inv(covariance), error)
    # The dense references themselves lose digits to the condition number, up to 1e6 here.
    assert mahalanobis == pytest.approx(reference, rel=1e-6)
    assert nll.mean() / 3 == pytest.approx(dense_nll([x], a, b), rel=1e-6)


def test_covariances_that_are_none_name_the_atom(block):
    x = block(10, kind="ensemble")
    x.floor[6] = [1, 1, 0, 0, 0, 0]
    with pytest.raises(DataError, match=r"record 106: the floor covariance is not positive definite.*atom 6"):
        whiten(x, 100)
    x = block(10, kind="ensemble")
    x.spread[4] = [1, 1, -1, 0, 0, 0]
    with pytest.raises(DataError, match=r"record 4: the spread covariance has a negative eigenvalue"):
        whiten(x)


def test_likelihood_of_mixed_blocks_and_its_derivatives(likelihood, block, monkeypatch):
    # Small enough blocks that some have a spread that is a multiple of their floor, and some have not.
    monkeypatch.setattr(calibration, "read_predictions", partial(read_predictions, max_atoms=10))
    blocks = [block(30), block(20, 1, kind="ensemble"), block(10, 2, kind="zero")]
    total = likelihood(*blocks)
    assert total.nll(0.5, 300.0) == pytest.approx(dense_nll(blocks, 0.5, 300.0), rel=1e-10)
    gradient, hessian = total.derivatives(0.5, 300.0)
    point, h = np.log([0.5, 300.0]), 1e-4
    for i in range(2):
        step = h * np.eye(2)[i]
        up, down = total.nll(*np.exp(point + step)), total.nll(*np.exp(point - step))
        assert gradient[i] == pytest.approx((up - down) / (2 * h), rel=1e-6, abs=1e-9)
        slopes = [total.derivatives(*np.exp(point + s))[0] for s in (step, -step)]
        assert hessian[i] == pytest.approx((slopes[0] - slopes[1]) / (2 * h), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("kind", ["bll", "ensemble"])
def test_optimum_is_the_one_of_an_independent_minimisation(likelihood, block, kind):
    x = block(150, a=0.4, b=500.0, kind=kind)
    fitted = fit_calibration(likelihood(x), "decoupled", {})
    reference = minimize(
        lambda p: dense_nll([x], *np.exp(p)), np.log([0.5, 300.0]), method="BFGS", options={"gtol": 1e-7}
    )
    assert np.log([fitted.a, fitted.b]) == pytest.approx(reference.x, abs=1e-4)
    assert fitted.nll_after <= reference.fun + 1e-12
    # At the optimum in a common scale of a and b, the mean squared Mahalanobis distance is 3.
    assert fitted.mahalanobis_after == pytest.approx(3.0, abs=1e-8)
    assert fitted.at_bound == ()
    assert fitted.b_identified


@pytest.mark.parametrize(("a", "b", "scale"), [(0.476, 1e6, 1e-6), (0.3, 94.0, 1e-2), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("kind", ["bll", "ensemble"])
def test_known_factors_are_recovered(likelihood, block, kind, a, b, scale):
    fitted = fit_calibration(likelihood(block(40_000, a=a, b=b, kind=kind, scale=scale)), "decoupled", {})
    assert fitted.a == pytest.approx(a, rel=0.05)
    assert fitted.b == pytest.approx(b, rel=0.05)
    assert len(fitted.starts) > 3
    assert all(start["nll"] >= fitted.nll_after - 1e-12 for start in fitted.starts)


def test_temperature_is_the_one_dimensional_minimum_and_the_kinds_are_nested(likelihood, block):
    x = likelihood(block(2000, a=0.5, b=1000.0))
    none, temperature, decoupled = (fit_calibration(x, k, {}) for k in ("none", "temperature", "decoupled"))
    reference = minimize_scalar(lambda t: x.nll(np.exp(t), np.exp(t)), options={"xtol": 1e-10})
    assert np.log(temperature.a) == pytest.approx(reference.x, abs=1e-6)
    assert temperature.a == temperature.b
    assert (none.a, none.b, none.nll_after) == (1.0, 1.0, none.nll_before)
    assert decoupled.nll_after < temperature.nll_after < none.nll_after


def test_tempering_the_posterior_is_undone_by_b(likelihood, block):
    """Proposition 3.1: tempering by w divides the spread by w, so the fitted b is w times as large."""
    x = block(3000, a=0.5, b=400.0)
    plain = fit_calibration(likelihood(x), "decoupled", {})
    tempered = dataclasses.replace(x, spread=x.spread / 7.0)
    fitted = fit_calibration(likelihood(tempered), "decoupled", {})
    assert (fitted.a, fitted.b) == pytest.approx((plain.a, 7.0 * plain.b), rel=1e-6)
    assert fitted.nll_after == pytest.approx(plain.nll_after, abs=1e-12)


def test_change_of_unit_and_order_of_atoms_leave_a_and_b(likelihood, block):
    x = block(3000, a=0.5, b=400.0, kind="ensemble")
    plain = fit_calibration(likelihood(x), "decoupled", {})
    s = 23.06
    scaled = dataclasses.replace(x, target=s * x.target, mean=s * x.mean, floor=s**2 * x.floor, spread=s**2 * x.spread)
    fitted = fit_calibration(likelihood(scaled), "decoupled", {})
    assert (fitted.a, fitted.b) == pytest.approx((plain.a, plain.b), rel=1e-6)
    assert fitted.nll_after == pytest.approx(plain.nll_after + np.log(s), abs=1e-9)
    order = np.random.default_rng(0).permutation(len(x))
    shuffled = dataclasses.replace(x, **{name: value[order] for name, value in vars(x).items()})
    fitted = fit_calibration(likelihood(shuffled), "decoupled", {})
    assert (fitted.a, fitted.b) == pytest.approx((plain.a, plain.b), rel=1e-6)


def test_no_spread_means_b_is_not_identified(likelihood, block):
    fitted = fit_calibration(likelihood(block(500, a=4.0, kind="zero")), "decoupled", {})
    assert not fitted.b_identified
    assert fitted.b == 1.0
    assert fitted.a == pytest.approx(4.0, rel=0.15)
    assert fitted.mahalanobis_after == pytest.approx(3.0)


def test_useless_spread_and_useless_floor_are_said_to_be_at_the_bound(likelihood, block):
    x = block(4000, a=1.0, b=0.0)
    order = np.argsort(-x.spread[:, 0])
    error = (x.target - x.mean)[np.argsort(((x.target - x.mean) ** 2).sum(axis=1))]
    # The larger the spread, the smaller the error: the best b is none.
    target = x.mean.copy()
    target[order] += error
    total = likelihood(dataclasses.replace(x, target=target))
    fitted = fit_calibration(total, "decoupled", {})
    assert fitted.at_bound == ("b",)
    assert fitted.a == total.best_scale(0.0)
    assert fitted.nll_after <= fitted.nll_before
    # A spread that says nothing either way: the optimum is at the bound, not wherever the search gave up.
    total = likelihood(block(300, 4, b=0.0))
    fitted = fit_calibration(total, "decoupled", {})
    assert (fitted.at_bound, fitted.a) == (("b",), total.best_scale(0.0))
    x = block(4000, a=0.0, b=100.0, scale=1.0)
    fitted = fit_calibration(likelihood(x), "decoupled", {})
    assert fitted.at_bound == ("a",)
    u = x.spread[:, 0] / x.floor[:, 0]
    relative = np.einsum("ni,nij,nj->n", x.target - x.mean, np.linalg.inv(unpack_symmetric(x.floor)), x.target - x.mean)
    # Without a floor the best b has a closed form.
    assert fitted.b == pytest.approx(np.mean(relative / u) / 3, rel=1e-6)


def test_file_round_trip_and_refusals(tmp_path, block, metadata):
    predictions, output = tmp_path / "v.parquet", tmp_path / "c.json"
    write_predictions(predictions, [block(300, a=0.5, b=100.0)], metadata)
    written = fit_calibrations(predictions, output)
    assert [c.kind for c in written] == ["none", "temperature", "decoupled"]
    assert read_calibrations(output) == written
    assert written[0].fitted_on == metadata
    first = output.read_bytes()
    fit_calibrations(predictions, output)
    assert output.read_bytes() == first

    output.write_text(json.dumps({"schema": "calibrations", "version": 9, "calibrations": []}))
    with pytest.raises(DataError, match="version 1"):
        read_calibrations(output)
    output.write_text("{")
    with pytest.raises(DataError, match="not a calibrations file"):
        read_calibrations(output)
    write_predictions(predictions, [block(300)], {**metadata, "split": "ood"})
    with pytest.raises(DataError, match="'ood'.*'validation'"):
        fit_calibrations(predictions, output)
    x = block(30)
    write_predictions(predictions, [dataclasses.replace(x, target=x.mean)], metadata)
    with pytest.raises(FitError, match="every validation residual is zero"):
        fit_calibrations(predictions, output)


def test_surface_is_the_likelihood_on_the_grid(tmp_path, block, metadata):
    x = block(50, a=0.3, b=1000.0)
    write_predictions(tmp_path / "v.parquet", [x], metadata)
    nll_surface(tmp_path / "v.parquet", tmp_path / "s.parquet", [-1.0, 0.1, 1.0], [-2.0, 3.0])
    table = pq.read_table(tmp_path / "s.parquet").to_pandas()
    assert len(table) == 6
    for _, row in table.iterrows():
        expected = dense_nll([x], 10 ** row["log10_a"], 10 ** row["log10_b"])
        assert row["nll"] == pytest.approx(expected, rel=1e-8)
