"""The benchmark's metrics: their definitions, and their evaluation over a predictions file of any size.

With residual ``e_i`` = target - mean (3-vector, eV/Å) and ``C_i = a floor_i + b spread_i`` of atom i of N:

* ``mae`` = mean over the 3N force components of |e|, eV/Å; ``rmse`` = root of the mean of e². Neither depends
  on the calibration.
* ``nll`` = mean of (3 log 2π + log|C_i| + e_i^T C_i^-1 e_i) / 2, divided by 3 (the paper's eq. 13, a force
  component). In other units, with forces s times larger, it is larger by log s.
* ``mahalanobis`` = mean of e_i^T C_i^-1 e_i: 3 when calibrated (the paper's section 5).
* ``sharpness`` = sqrt(mean of trace(C_i) / 3), the root mean predictive variance of a component, eV/Å
  (Gneiting et al. 2007, doi:10.1111/j.1467-9868.2007.00587.x; here of the variance).
* ``coverage_50``, ``_90``, ``_95`` = share of the 3N components inside their central interval of that level,
  |e| <= sqrt(C_kk) z((1 + p) / 2), z the standard normal quantile.
* ``ece`` = mean over p = 0.01, 0.02, ..., 0.99 of |coverage at p - p| (Kuleshov et al. 2018,
  arXiv:1807.00263, for central intervals): 0 when calibrated, 0.5 when the variance vanishes.
* ``spearman`` = rank correlation over atoms of sqrt(trace C_i) and |e_i|, average ranks for ties.
* ``ause`` = area between two sparsification curves (Ilg et al. 2018, arXiv:1802.07095): the mean |e_i| of the
  atoms left when the share f with the largest sqrt(trace C_i) is taken out, over its value at f = 0, minus
  the same with the largest |e_i| taken out (the oracle); averaged over f = 0, 1/N, ..., (N - 1)/N. Atoms
  with equal uncertainty count as their mean, the expectation over their order.

A metric that is not defined is null, with the reason in the column ``note``.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri

from forceuq.calibration import Calibration, read_calibrations
from forceuq.errors import DataError
from forceuq.metric_tables import LABELS, curves_frame, metrics_frame, write_frame
from forceuq.predictions import PredictionBlock, predictions_metadata, read_predictions
from forceuq.ranking import FRACTIONS, Ranking, RankStatistics, Value
from forceuq.whitening import whiten

LEVELS = np.arange(1, 100) / 100.0
METRICS = (
    "mae",
    "rmse",
    "ece",
    "spearman",
    "nll",
    "mahalanobis",
    "sharpness",
    "coverage_50",
    "coverage_90",
    "coverage_95",
    "ause",
)
_QUANTILES = ndtri((1.0 + LEVELS) / 2.0)
# Of each cell [c, c + 1) / _CELLS_PER_UNIT the first quantile not below its start; the nearest two lie 1/80 apart.
_CELLS_PER_UNIT = 128
_FIRST = np.searchsorted(_QUANTILES, np.arange(math.ceil(_QUANTILES[-1] * _CELLS_PER_UNIT) + 1) / _CELLS_PER_UNIT)
_BOUNDS = np.append(_QUANTILES, np.inf)


@dataclass
class _Sums:
    """What one calibration accumulates; of each block one number, added exactly at the end."""

    nll: list[float] = field(default_factory=list)
    mahalanobis: list[float] = field(default_factory=list)
    trace: list[float] = field(default_factory=list)
    # How many components have |z| between one level's quantile and the next: exact, not a histogram of z.
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(LEVELS) + 1, dtype=np.int64))


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one split under one calibration.

    Args:
        values: for each of ``METRICS`` its value, or None and the reason.
        coverage: (99,) observed coverage at ``LEVELS``.
        sparsification: (100,) the curve at ``FRACTIONS``, or None where all residuals are zero.
        oracle: (100,) likewise, with the errors known.
        n_atoms: atoms evaluated.
    """

    values: Mapping[str, Value]
    coverage: NDArray[np.float64]
    sparsification: NDArray[np.float64] | None
    oracle: NDArray[np.float64] | None
    n_atoms: int


def evaluate(
    blocks: Iterable[PredictionBlock],
    calibrations: Sequence[tuple[float, float]],
    file: str | None = None,
    folder: Path | None = None,
) -> tuple[Evaluation, ...]:
    """Return the metrics of one split under each (a, b), in one pass.

    Memory: one block, and what is ranked of a quarter of a million atoms (``forceuq.ranking``); what is ranked of more
    lies in a temporary file.

    Args:
        blocks: the split's predictions.
        calibrations: the pairs (a, b).
        file: the file the blocks come from, for messages.
        folder: where a temporary file may be; None: the system's folder for them.

    Raises:
        DataError: no atoms, or a covariance that is not positive definite, with its row.
    """
    sums = [_Sums() for _ in calibrations]
    absolute, squared, ranking = [], [], Ranking(folder)
    n = 0
    for block in blocks:
        white = whiten(block, n, file)
        error = block.target - block.mean
        absolute.append(float(np.abs(error).sum()))
        squares = error**2
        squared.append(float(squares.sum()))
        traces = (covariance[:, :3].sum(axis=1) for covariance in (block.floor, block.spread))
        ranking.add(np.sqrt(squares.sum(axis=1)), *traces)
        for (a, b), total in zip(calibrations, sums, strict=True):
            nll, mahalanobis = white.scores(a, b)
            # A spread of float32 rounding may lie a hair under zero; the floor is positive definite.
            variance = a * block.floor[:, :3] + b * np.maximum(block.spread[:, :3], 0.0)
            total.nll.append(float(nll.sum()))
            total.mahalanobis.append(float(mahalanobis.sum()))
            total.trace.append(float(variance.sum()))
            total.counts += np.bincount(_level_index(squares, variance).ravel(), minlength=len(LEVELS) + 1)
        n += len(block)
    if n == 0:
        raise DataError("there are no atoms to evaluate", file=file)
    common: dict[str, Value] = {
        "mae": (math.fsum(absolute) / (3 * n), None),
        "rmse": (math.sqrt(math.fsum(squared) / (3 * n)), None),
    }
    return tuple(
        _finish(total, common, ranking.against(a, b), n) for (a, b), total in zip(calibrations, sums, strict=True)
    )


def _level_index(squares: NDArray[np.float64], variance: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each component the first of ``LEVELS`` whose central interval holds it (99: none).

    A table of equal cells, none with two quantiles in it, leaves one exact comparison: faster than a search.
    """
    z = np.sqrt(squares / variance)
    # A cell's width is a power of two, so that the cell is exact; fmin puts what is infinite into the last.
    first = _FIRST[np.fmin(z * _CELLS_PER_UNIT, len(_FIRST) - 1).astype(np.int64)]
    index: NDArray[np.int64] = first + (z > _BOUNDS[first])
    return index


def level_counts(
    residual: NDArray[np.float64], variance: NDArray[np.float64], group: NDArray[np.int64], n_groups: int
) -> NDArray[np.int64]:
    """Return (n_groups, 100), how many components of a group's atoms fall to each index of ``_level_index``.

    Coverage at ``LEVELS`` is the cumulative sum of all but the last, over the number of components.

    Args:
        residual: (n, 3), eV/Å.
        variance: (n, 3), (eV/Å)².
        group: (n,) of each atom, from 0.
        n_groups: how many there are.
    """
    width = len(LEVELS) + 1
    index = _level_index(residual**2, variance) + width * group[:, None]
    return np.bincount(index.ravel(), minlength=n_groups * width).reshape(n_groups, width)


def _finish(total: _Sums, common: Mapping[str, Value], ranks: RankStatistics, n: int) -> Evaluation:
    coverage = np.cumsum(total.counts)[:-1] / (3 * n)
    values: dict[str, Value] = {
        **common,
        "ece": (float(np.abs(coverage - LEVELS).mean()), None),
        "nll": (math.fsum(total.nll) / (3 * n), None),
        "mahalanobis": (math.fsum(total.mahalanobis) / n, None),
        "sharpness": (math.sqrt(math.fsum(total.trace) / (3 * n)), None),
        "spearman": ranks.spearman,
        **{f"coverage_{p}": (float(coverage[p - 1]), None) for p in (50, 90, 95)},
    }
    values["ause"] = ranks.ause
    return Evaluation({name: values[name] for name in METRICS}, coverage, ranks.curve, ranks.oracle, n)


def evaluate_predictions(
    predictions: Path,
    calibrations: Path,
    output: Path,
    curves: Path,
    labels: Mapping[str, Any],
) -> None:
    """Evaluate one predictions file under every calibration of one calibrations file.

    Args:
        predictions: the split's predictions.
        calibrations: what ``fit_calibrations`` wrote for the same task, method and seed.
        output: Parquet, a row a number: dataset, task, split, method, calibration, seed, metric, value
            (null where undefined), n_atoms, note.
        curves: Parquet, a row a point: dataset, task, split, method, calibration, seed, curve
            ("calibration": x level, y observed coverage; "sparsification" and "oracle": x share taken out, y
            error left relative to that of all), x, y.
        labels: dataset, task, split, method and seed as the table shall name them; those absent are taken
            from the predictions' metadata.

    Raises:
        DataError: labels that are missing or contradict the file's metadata; calibrations of another task,
            method or seed; predictions that cannot be used.
    """
    metadata = predictions_metadata(predictions)
    complete = {}
    for key in LABELS:
        if key not in labels and key not in metadata:
            raise DataError(f"neither the labels nor the file's metadata give '{key}'", file=predictions)
        if key in labels and key in metadata and str(labels[key]) != str(metadata[key]):
            raise DataError(f"holds {key} '{metadata[key]}' but is evaluated as '{labels[key]}'", file=predictions)
        complete[key] = labels.get(key, metadata.get(key))
    fitted = read_calibrations(calibrations)
    _same_fit(fitted, metadata, calibrations)
    results = evaluate(read_predictions(predictions), [(c.a, c.b) for c in fitted], str(predictions), output.parent)
    rows, points = [], []
    for calibration, result in zip(fitted, results, strict=True):
        own = {**complete, "calibration": calibration.kind}
        for metric, (value, note) in result.values.items():
            rows.append({**own, "metric": metric, "value": value, "n_atoms": result.n_atoms, "note": note})
        for name, x, y in (
            ("calibration", LEVELS, result.coverage),
            ("sparsification", FRACTIONS, result.sparsification),
            ("oracle", FRACTIONS, result.oracle),
        ):
            if y is not None:
                points.append(pd.DataFrame({**own, "curve": name, "x": x, "y": y}))
    write_frame(metrics_frame(pd.DataFrame(rows)), output, "metrics")
    write_frame(curves_frame(pd.concat(points, ignore_index=True)), curves, "curves")


def _same_fit(fitted: Sequence[Calibration], metadata: Mapping[str, Any], calibrations: Path) -> None:
    """Refuse calibrations that were fitted for another task, method or seed."""
    for calibration in fitted:
        for key in ("dataset", "task", "method", "seed"):
            ours, theirs = metadata.get(key), calibration.fitted_on.get(key)
            if ours is not None and theirs is not None and ours != theirs:
                raise DataError(
                    f"was fitted on {key} '{theirs}'; the predictions to calibrate are of {key} '{ours}'",
                    file=calibrations,
                )


def write_unavailable(
    output: Path, curves: Path, labels: Mapping[str, Any], calibrations: Sequence[str], reason: str
) -> None:
    """Write null metrics with a reason, for a method that cannot run on a split: the table then says so.

    Args:
        output: as in ``evaluate_predictions``.
        curves: likewise; it has no rows.
        labels: dataset, task, split, method, seed, all of them.
        calibrations: the calibrations that would have been evaluated.
        reason: why not; what the table's note says.
    """
    rows = [
        {**labels, "calibration": kind, "metric": m, "value": None, "n_atoms": 0, "note": reason}
        for kind in calibrations
        for m in METRICS
    ]
    write_frame(metrics_frame(pd.DataFrame(rows)), output, "metrics")
    empty = pd.DataFrame(columns=[*LABELS, "calibration", "curve", "x", "y"])
    write_frame(curves_frame(empty), curves, "curves")
