import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, norm, spearmanr
from sklearn.metrics import mean_absolute_error, mean_squared_error

from forceuq.calibration import fit_calibrations
from forceuq.errors import DataError
from forceuq.metric_tables import merge_curves, merge_metrics, read_frame
from forceuq.metrics import FRACTIONS, LEVELS, METRICS, evaluate, evaluate_predictions, level_counts, write_unavailable
from forceuq.predictions import pack_symmetric, unpack_symmetric, write_predictions


def values(block, a=1.0, b=1.0):
    (result,) = evaluate([block], [(a, b)])
    return {name: value for name, (value, _) in result.values.items()}


def brute_force(x, a, b):
    """Every metric by its definition, atom by atom."""
    covariances = a * unpack_symmetric(x.floor) + b * unpack_symmetric(x.spread)
    error = x.target - x.mean
    n = len(x)
    nll = mahalanobis = 0.0
    inside = np.zeros(99)
    for e, c in zip(error, covariances, strict=True):
        nll -= multivariate_normal(cov=c).logpdf(e) / 3
        mahalanobis += e @ np.linalg.solve(c, e)
        for k in range(3):
            for i, p in enumerate(LEVELS):
                low, high = norm.interval(p, scale=np.sqrt(c[k, k]))
                inside[i] += low <= e[k] <= high
    coverage = inside / (3 * n)
    uncertainty = np.sqrt(np.trace(covariances, axis1=1, axis2=2))
    norms = np.linalg.norm(error, axis=1)
    by_uncertainty, by_error = norms[np.argsort(-uncertainty)], np.sort(norms)[::-1]
    ause = np.mean([by_uncertainty[i:].mean() - by_error[i:].mean() for i in range(n)]) / norms.mean()
    return {
        "mae": mean_absolute_error(x.target, x.mean),
        "rmse": np.sqrt(mean_squared_error(x.target, x.mean)),
        "ece": np.mean(np.abs(coverage - LEVELS)),
        "spearman": spearmanr(uncertainty, norms).statistic,
        "nll": nll / n,
        "mahalanobis": mahalanobis / n,
        "sharpness": np.sqrt(np.mean(np.diagonal(covariances, axis1=1, axis2=2))),
        "coverage_50": coverage[49],
        "coverage_90": coverage[89],
        "coverage_95": coverage[94],
        "ause": ause,
    }


def test_a_level_is_exactly_the_first_whose_interval_holds_the_residual():
    quantiles = norm.ppf((1 + LEVELS) / 2)
    random = np.abs(np.random.default_rng(0).normal(size=100_000)) * 1.5
    near = [np.nextafter(quantiles, 0), quantiles, np.nextafter(quantiles, 9), [0.0, 1e-300, 1e9, np.inf]]
    # One component an atom; the others lie inside every interval.
    z = np.concatenate([random, *near])
    variance = np.random.default_rng(1).gamma(2.0, size=(len(z), 3))
    residual = np.stack([np.sqrt(variance[:, 0]) * z, *np.zeros((2, len(z)))], axis=1)
    with np.errstate(over="ignore"):
        seen = np.sqrt(residual[:, 0] ** 2 / variance[:, 0])
        counts = level_counts(residual, variance, np.arange(len(z)), len(z))
        assert np.array_equal(level_counts(residual, variance, np.arange(len(z)) // 7, len(z)).sum(0), counts.sum(0))
    expected = np.searchsorted(quantiles, seen)
    assert np.all(counts.sum(axis=1) == 3)
    counts[:, 0] -= 2
    assert np.array_equal(counts.argmax(axis=1), expected)


@pytest.mark.parametrize("kind", ["bll", "ensemble"])
def test_every_metric_is_the_brute_force_one(block, kind):
    x = block(120, a=0.5, b=300.0, kind=kind)
    expected = brute_force(x, 0.7, 200.0)
    assert set(expected) == set(METRICS)
    for name, value in values(x, 0.7, 200.0).items():
        assert value == pytest.approx(expected[name], rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("kind", ["bll", "ensemble", "zero"])
def test_a_gaussian_with_the_right_covariance_is_calibrated(block, kind):
    found = values(block(100_000, a=0.5, b=800.0, kind=kind), 0.5, 800.0)
    assert found["ece"] < 0.003
    assert found["mahalanobis"] == pytest.approx(3.0, abs=0.03)
    for p in (50, 90, 95):
        assert found[f"coverage_{p}"] == pytest.approx(p / 100, abs=0.005)
    # The root mean square error is then what the sharpness says.
    assert found["rmse"] == pytest.approx(found["sharpness"], rel=0.02)


def test_vanishing_and_exploding_variances_have_an_ece_of_one_half(block):
    x = block(500)
    assert values(x, 1e-20, 1e-20)["ece"] == pytest.approx(0.5)
    assert values(x, 1e20, 1.0)["ece"] == pytest.approx(0.5)
    assert values(x, 1e-20, 1e-20)["coverage_95"] == 0.0


def test_the_end_of_an_interval_belongs_to_it(block):
    x = block(99, kind="zero")
    x.floor[:] = [1, 1, 1, 0, 0, 0]
    x.mean[:] = 0.0
    x.target[:] = norm.ppf((1 + LEVELS) / 2)[:, None]
    (result,) = evaluate([x], [(1.0, 1.0)])
    assert result.coverage == pytest.approx(np.arange(1, 100) / 99)


def test_blocks_do_not_matter(block, cut_block):
    x = block(5000, a=0.5, b=300.0, kind="ensemble")
    (whole,) = evaluate([x], [(0.5, 300.0)])
    (parts,) = evaluate(cut_block(x, [1, 2500, 0, 2499]), [(0.5, 300.0)])
    for name, (value, _) in whole.values.items():
        assert parts.values[name][0] == pytest.approx(value, rel=1e-12), name
    assert np.array_equal(whole.coverage, parts.coverage)
    assert np.allclose(whole.sparsification, parts.sparsification, rtol=1e-12)


def test_a_rotation_leaves_what_it_should(block):
    """All but what is defined per Cartesian component: MAE, ECE and coverage depend on the axes."""
    x = block(2000, a=0.3, b=100.0, kind="ensemble")
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]

    def turned(packed):
        return pack_symmetric(rotation @ unpack_symmetric(packed) @ rotation.T)

    y = dataclasses.replace(
        x,
        target=x.target @ rotation.T,
        mean=x.mean @ rotation.T,
        floor=turned(x.floor),
        spread=turned(x.spread),
    )
    before, after = values(x, 1.0, 50.0), values(y, 1.0, 50.0)
    for name in ("rmse", "nll", "mahalanobis", "sharpness", "spearman", "ause"):
        assert after[name] == pytest.approx(before[name], rel=1e-9), name
    assert after["mae"] != pytest.approx(before["mae"], rel=1e-6)


def test_a_change_of_unit_changes_what_it_should(block):
    x = block(1000, a=0.3, b=100.0, kind="ensemble")
    s = 1 / 0.0433641
    y = dataclasses.replace(x, target=s * x.target, mean=s * x.mean, floor=s**2 * x.floor, spread=s**2 * x.spread)
    before, after = values(x, 1.0, 50.0), values(y, 1.0, 50.0)
    for name in ("mae", "rmse", "sharpness"):
        assert after[name] == pytest.approx(s * before[name], rel=1e-12), name
    assert after["nll"] == pytest.approx(before["nll"] + np.log(s), abs=1e-10)
    for name in set(METRICS) - {"mae", "rmse", "sharpness", "nll"}:
        assert after[name] == pytest.approx(before[name], rel=1e-9), name


def isotropic(block, error, sigma):
    """Atoms with a given error norm and a given standard deviation."""
    x = block(len(error), kind="zero")
    x.floor[:, :3] = np.square(sigma)[:, None]
    x.floor[:, 3:] = 0.0
    x.target[:] = x.mean
    x.target[:, 0] += error
    x.mean[:, 0] = x.target[:, 0] - error
    return x


def test_ties_take_average_ranks(block):
    rng = np.random.default_rng(0)
    error, sigma = rng.integers(1, 5, 300) / 4.0, rng.integers(1, 4, 300) / 2.0
    x = isotropic(block, error, sigma)
    x.target[:], x.mean[:] = 0.0, 0.0
    x.target[:, 0] = error
    found = values(x)
    assert found["spearman"] == pytest.approx(spearmanr(sigma, error).statistic, abs=1e-12)
    order = rng.permutation(300)
    shuffled = dataclasses.replace(x, **{name: value[order] for name, value in vars(x).items()})
    assert values(shuffled)["ause"] == pytest.approx(found["ause"], rel=1e-12)


def test_undefined_metrics_are_none_with_a_reason(block):
    rng = np.random.default_rng(0)
    x = isotropic(block, rng.uniform(1, 2, 50), np.ones(50))
    (result,) = evaluate([x], [(1.0, 1.0)])
    assert result.values["spearman"][0] is None
    assert "same uncertainty" in result.values["spearman"][1]
    # No ranking at all: the curve stays at one, on average over the order of the atoms.
    assert result.sparsification == pytest.approx(1.0)
    x = dataclasses.replace(x, target=x.mean)
    (result,) = evaluate([x], [(1.0, 1.0)])
    assert result.values["ause"] == (None, "undefined: every residual is zero")
    one = dataclasses.replace(x, **{name: value[:1] for name, value in vars(x).items()})
    (result,) = evaluate([one], [(1.0, 1.0)])
    assert result.values["spearman"] == (None, "undefined for a single atom")


def test_a_perfect_ranking_has_no_ause_and_the_worst_has_the_most(block):
    error = np.random.default_rng(0).uniform(0.1, 2, 400)
    perfect = values(isotropic(block, error, error))
    worst = values(isotropic(block, error, 1 / error))
    assert perfect["ause"] == pytest.approx(0.0, abs=1e-12)
    assert perfect["spearman"] == pytest.approx(1.0)
    assert worst["spearman"] == pytest.approx(-1.0)
    assert worst["ause"] > 0.5


def test_sparsification_curve_at_its_fractions(block):
    error, sigma = np.array([4.0, 3.0, 2.0, 1.0]), np.array([1.0, 4.0, 3.0, 2.0])
    (result,) = evaluate([isotropic(block, error, sigma)], [(1.0, 1.0)])
    at = {f: i for i, f in enumerate(FRACTIONS)}
    # Taken out in the order 3, 2, 1 of the errors; the mean of all is 2.5.
    for fraction, left in ((0.0, 2.5), (0.24, 2.5), (0.25, 7 / 3), (0.5, 2.5), (0.75, 4.0)):
        assert result.sparsification[at[fraction]] == pytest.approx(left / 2.5)
    for fraction, left in ((0.0, 2.5), (0.25, 2.0), (0.5, 1.5), (0.75, 1.0)):
        assert result.oracle[at[fraction]] == pytest.approx(left / 2.5)

    # 0.29 * 100 is 28.999... in binary; 29 atoms are taken out all the same.
    error = np.arange(1.0, 101.0)
    (result,) = evaluate([isotropic(block, error, error)], [(1.0, 1.0)])
    assert result.oracle[29] == pytest.approx(np.mean(error[:71]) / np.mean(error))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-10, 10), min_size=2, max_size=40),
    st.floats(1e-3, 1e3),
    st.integers(0, 2**31),
)
def test_bounds_hold_for_any_residuals(errors, scale, seed):
    from forceuq.predictions import PredictionBlock

    rng = np.random.default_rng(seed)
    n = len(errors)
    factors = rng.normal(size=(n, 3, 3))
    x = PredictionBlock(
        structure=np.arange(n),
        atom=np.zeros(n, dtype=np.int32),
        number=np.ones(n, dtype=np.int16),
        part=np.zeros(n, dtype=np.int16),
        target=np.array(errors)[:, None] * rng.normal(size=(n, 3)),
        mean=np.zeros((n, 3)),
        floor=pack_symmetric(scale * (factors @ factors.transpose(0, 2, 1) + 0.1 * np.eye(3))),
        spread=np.zeros((n, 6)),
    )
    found = values(x)
    assert 0.0 <= found["ece"] <= 0.5 + 1e-12
    assert found["coverage_50"] <= found["coverage_90"] <= found["coverage_95"]
    assert found["mahalanobis"] >= 0.0
    assert found["mae"] <= found["rmse"] + 1e-12
    if found["ause"] is not None:
        assert found["ause"] >= -1e-12
    if found["spearman"] is not None:
        assert -1.0 <= found["spearman"] <= 1.0


@pytest.fixture
def files(tmp_path, block, metadata):
    write_predictions(tmp_path / "v.parquet", [block(300, a=0.5, b=100.0)], metadata)
    fit_calibrations(tmp_path / "v.parquet", tmp_path / "c.json")
    write_predictions(tmp_path / "p.parquet", [block(400, 1, a=0.5, b=100.0)], {**metadata, "split": "ood"})
    return tmp_path


def run(files, labels, name="m"):
    evaluate_predictions(
        files / "p.parquet", files / "c.json", files / f"{name}.parquet", files / f"{name}-c.parquet", labels
    )
    return files / f"{name}.parquet", files / f"{name}-c.parquet"


def test_long_tables(files, block):
    metrics, curves = run(files, {"dataset": "rmd17"})
    table = read_frame(metrics, "metrics")
    keys = ["dataset", "task", "split", "method", "calibration", "seed", "metric", "value", "n_atoms", "note"]
    assert list(table.columns) == keys
    assert len(table) == 3 * len(METRICS)
    assert list(dict.fromkeys(table["calibration"])) == ["none", "temperature", "decoupled"]
    assert set(table["n_atoms"]) == {400}
    assert set(table["seed"]) == {3}
    raw = table[table["calibration"] == "none"].set_index("metric")["value"]
    for name, value in values(block(400, 1, a=0.5, b=100.0)).items():
        assert raw[name] == pytest.approx(value, rel=1e-12)
    # The mean never changes.
    assert table[table["metric"] == "mae"]["value"].nunique() == 1
    curve = read_frame(curves, "curves")
    assert set(curve["curve"]) == {"calibration", "sparsification", "oracle"}
    observed = curve[(curve["curve"] == "calibration") & (curve["calibration"] == "none")]
    assert np.mean(np.abs(observed["y"] - observed["x"])) == pytest.approx(raw["ece"], rel=1e-12)


def test_validation_nll_of_the_calibration_is_the_metric(files):
    """Two roads to the same number: the calibration's likelihood and the metric on the same predictions."""
    import json

    evaluate_predictions(files / "v.parquet", files / "c.json", files / "vm.parquet", files / "vc.parquet", {})
    table = read_frame(files / "vm.parquet", "metrics").set_index(["calibration", "metric"])["value"]
    for c in json.loads((files / "c.json").read_text())["calibrations"]:
        assert table[c["kind"], "nll"] == pytest.approx(c["nll_after"], rel=1e-12)
        assert table[c["kind"], "mahalanobis"] == pytest.approx(c["mahalanobis_after"], rel=1e-12)


def test_mixed_up_files_are_refused(files, block, metadata):
    with pytest.raises(DataError, match="holds task 'ethanol' but is evaluated as 'uracil'"):
        run(files, {"task": "uracil"})
    write_predictions(files / "p.parquet", [block(40)], {**metadata, "split": "ood", "seed": 4})
    with pytest.raises(DataError, match="fitted on seed '3'; the predictions to calibrate are of seed '4'"):
        run(files, {})
    write_predictions(files / "p.parquet", [block(40)], {"split": "ood"})
    with pytest.raises(DataError, match="give 'dataset'"):
        run(files, {})
    assert not (files / "m.parquet").exists()


def test_merging_is_deterministic_and_refuses_duplicates(files):
    metrics, curves = run(files, {})
    write_unavailable(
        files / "gp.parquet",
        files / "gp-c.parquet",
        {"dataset": "mptrj", "task": "mptrj", "split": "far", "method": "gp", "seed": 0},
        ["none", "decoupled"],
        "too many atoms for exact inference",
    )
    merge_metrics([metrics, files / "gp.parquet"], files / "a.parquet")
    merge_metrics([files / "gp.parquet", metrics], files / "b.parquet")
    assert (files / "a.parquet").read_bytes() == (files / "b.parquet").read_bytes()
    merged = read_frame(files / "a.parquet", "metrics")
    missing = merged[merged["method"] == "gp"]
    assert len(merged) == 5 * len(METRICS)
    assert missing["value"].isna().all()
    assert set(missing["note"]) == {"too many atoms for exact inference"}
    merge_curves([curves, files / "gp-c.parquet"], files / "c.parquet")
    assert len(read_frame(files / "c.parquet", "curves")) == 3 * (99 + 100 + 100)
    with pytest.raises(DataError, match="hold the same row"):
        merge_metrics([metrics, metrics], files / "d.parquet")
    with pytest.raises(DataError, match="no metrics to merge"):
        merge_metrics([], files / "d.parquet")
    with pytest.raises(DataError, match="'metrics' version 1 is needed"):
        read_frame(curves, "metrics")
    assert isinstance(merged, pd.DataFrame)
