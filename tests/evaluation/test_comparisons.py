from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from forceuq.bootstrap import METRICS
from forceuq.calibration import fit_calibrations, read_calibrations
from forceuq.comparisons import Evaluated, compare
from forceuq.errors import DataError
from forceuq.metrics import evaluate
from forceuq.predictions import VALIDATION_SPLIT, write_predictions


@pytest.fixture
def fit(tmp_path):
    """Write one fit's predictions of validation and of "id"."""

    def write(method, block, seed=0, kinds=("none", "decoupled")):
        folder = tmp_path / method / str(seed)
        folder.mkdir(parents=True)
        labels = {"dataset": "d", "task": "t", "method": method, "seed": seed}
        for split in (VALIDATION_SPLIT, "id"):
            write_predictions(folder / f"{split}.parquet", [block], {**labels, "split": split})
        fit_calibrations(folder / f"{VALIDATION_SPLIT}.parquet", folder / "c.json", kinds)
        return Evaluated(method, "t", seed, folder, folder / "c.json")

    return write


def table(tmp_path, fits, **options):
    compare(fits, ["id"], tmp_path / "c.csv", **options)
    return pd.read_csv(tmp_path / "c.csv")


@pytest.mark.parametrize("kind", ["bll", "ensemble"])
def test_values_are_the_metrics(tmp_path, fit, block, kind):
    data = block(700, kind=kind)
    one = fit("one", data)
    found = table(tmp_path, [one], draws=2).set_index(["metric", "calibration"])["value"]
    calibrations = read_calibrations(one.calibrations)
    for calibration, result in zip(calibrations, evaluate([data], [(c.a, c.b) for c in calibrations]), strict=True):
        for metric in METRICS:
            assert found[metric, calibration.kind] == pytest.approx(result.values[metric][0], rel=1e-12)


def test_what_is_worse_on_every_structure_is_told_apart_and_what_is_equal_is_not(tmp_path, fit, block):
    data = block(700)
    residual = data.target - data.mean
    rng = np.random.default_rng(1)
    other = replace(data, mean=data.target - residual * rng.choice([-1, 1], size=residual.shape))
    worse = replace(data, mean=data.target - 1.05 * residual)
    found = table(tmp_path, [fit("one", data), fit("same", other), fit("worse", worse)], draws=200)
    mae = found[(found["metric"] == "mae") & (found["calibration"] == "none")].set_index("method")
    assert mae.loc["worse", "worse"]
    assert mae.loc["worse", "difference"] == pytest.approx(0.05 * np.abs(residual).mean(), rel=1e-9)
    assert not mae.loc["same", "worse"]
    assert not mae.loc["one", "worse"]
    assert (found["difference"] >= 0).all()
    best = found[found["difference"] == 0]
    assert set(best["metric"]) == set(METRICS)
    assert not best["worse"].any()


@pytest.mark.parametrize(("structures", "known"), [(1, False), (9, False), (10, True)])
def test_few_structures_say_nothing(tmp_path, fit, block, structures, known):
    """Draws of one are all alike: any difference would be significant."""
    data = block(7 * structures)
    worse = replace(data, mean=data.target - 1.01 * (data.target - data.mean))
    found = table(tmp_path, [fit("one", data), fit("worse", worse)], draws=200)
    assert (found["structures"] == structures).all()
    assert found["low"].notna().any() == known
    assert found["worse"].any() == known


def test_pairing_tells_apart_what_the_methods_own_intervals_would_not(tmp_path, fit, block):
    # One structure in ten has errors twenty times as large: the mean varies a lot, the difference little.
    data = block(700)
    scale = np.where(data.structure % 10 == 0, 20.0, 1.0)[:, None]
    residual = scale * (data.target - data.mean)
    first = replace(data, mean=data.target - residual)
    second = replace(data, mean=data.target - 1.02 * residual)
    found = table(tmp_path, [fit("one", first), fit("two", second)], draws=400)
    row = found[(found["metric"] == "mae") & (found["method"] == "two")].iloc[0]
    by_structure = np.abs(residual).reshape(100, -1).mean(axis=1)
    assert row["difference"] < 0.5 * by_structure.std() / 10, "the standard error of the mean is the larger"
    assert row["worse"]


def test_the_interval_is_that_of_the_mean(tmp_path, fit, block):
    data = block(1400)
    second = replace(data, mean=data.mean + np.random.default_rng(5).normal(scale=0.05, size=data.mean.shape))
    found = table(tmp_path, [fit("one", data), fit("two", second)], draws=2000)
    row = found[(found["metric"] == "mae") & (found["difference"] > 0)].iloc[0]
    difference = np.abs(data.target - second.mean) - np.abs(data.target - data.mean)
    by_structure = difference.reshape(200, -1).mean(axis=1)
    half = 1.96 * by_structure.std(ddof=1) / np.sqrt(200)
    assert row["high"] - row["low"] == pytest.approx(2 * half, rel=0.1)


def test_seeds_are_averaged_and_draws_repeat(tmp_path, fit, block):
    blocks = [block(350), replace(block(350), mean=block(350).mean + 0.01)]
    fits = [fit("one", one, seed) for seed, one in enumerate(blocks)]
    found = table(tmp_path, fits, draws=20)
    mae = [np.abs(b.target - b.mean).mean() for b in blocks]
    assert found.loc[found["metric"] == "mae", "value"].iloc[0] == pytest.approx(np.mean(mae), rel=1e-12)
    pd.testing.assert_frame_equal(found, table(tmp_path, fits, draws=20))


def test_a_constant_uncertainty_has_no_rank_correlation(tmp_path, fit, block):
    found = table(tmp_path, [fit("one", block(140, kind="zero"), kinds=("none",)), fit("two", block(140))], draws=5)
    assert "one" not in set(found.loc[found["metric"] == "spearman", "method"])
    assert "one" in set(found.loc[found["metric"] == "mae", "method"])


def test_methods_of_other_structures_are_named(tmp_path, fit, block):
    data = block(140)
    fits = [fit("one", data), fit("two", replace(data, structure=data.structure + 1))]
    with pytest.raises(DataError, match=r"two/0/id\.parquet: predicts other structures than .*one/0/id\.parquet"):
        table(tmp_path, fits, draws=2)


def test_nothing_depends_on_the_number_of_processes(tmp_path, fit, block):
    fits = [fit("one", block(140)), fit("two", replace(block(140), mean=block(140).mean + 0.02))]
    alone = table(tmp_path, fits, draws=30)
    pd.testing.assert_frame_equal(alone, table(tmp_path, fits, draws=30, processes=2), check_exact=True)
    (fits[1].predictions / "id.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"two/0/id\.parquet"):
        table(tmp_path, fits, draws=30, processes=2)
