"""Which methods the data can tell apart: a paired bootstrap over structures.

Structures are drawn with replacement, the same draw for every method, calibration and seed of a task, so that
what makes a structure hard falls out of the differences. Atoms of a structure stay together: their errors are
not independent. Seeds and tasks are averaged as in the table and are not resampled: the intervals say how much
the choice of test structures matters, not how much another training would.
Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile interval).
"""

import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forceuq.calibration import read_calibrations
from forceuq.errors import DataError
from forceuq.files import whole_file
from forceuq.metrics import LEVELS, level_counts
from forceuq.predictions import read_predictions
from forceuq.whitening import whiten

METRICS = ("mae", "ece", "spearman", "nll")
_HIGHER_IS_BETTER = {"spearman"}
# Weights of atoms held at once: 80 MB, and a few times that while they are ranked.
_WEIGHTS = 10_000_000
# Differences below this, relative to the value, are the order of summation.
_ROUNDING = 1e-9

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluated:
    """One fit's files: its method, task and seed, the folder of its predictions, and its calibrations."""

    method: str
    task: str
    seed: int
    predictions: Path
    calibrations: Path


@dataclass(frozen=True)
class _Split:
    """One fit's predictions of one split, summed by structure (S) where the metric allows it.

    Args:
        keys: (S, 2) part and row of each structure.
        index: (N,) the structure of each atom.
        absolute: (S,) sum of absolute errors of the components.
        error: (N,) norm of each atom's error.
        nll: for each calibration (S,) the sum of the negative log-likelihoods.
        counts: for each calibration (S, 100) components by the level that their interval begins to hold them.
        trace: for each calibration (N,) trace of the covariance.
    """

    keys: NDArray[np.int64]
    index: NDArray[np.int64]
    absolute: Floats
    error: Floats
    nll: list[Floats]
    counts: list[Floats]
    trace: list[Floats]


def compare(
    fits: Sequence[Evaluated], splits: Sequence[str], output: Path, *, draws: int = 1000, seed: int = 0
) -> None:
    """Write, for one data set, how each method and calibration differs from the best of each split.

    Writes CSV with a row for each split, metric, method and calibration: ``value``, the mean over tasks and
    seeds; ``best``, the method and calibration with the best value (``method/calibration``); ``difference``
    from it, positive where this one is worse, with ``low`` and ``high``, the 2.5 and 97.5 % quantiles over the
    draws; and ``worse``, whether ``low`` is above zero
    (and rounding). Metrics that a fit leaves undefined (a rank
    correlation of constants) have no row.

    Args:
        fits: of every method, task and seed; each method with the same tasks.
        splits: to compare on.
        output: the CSV.
        draws: bootstrap samples.
        seed: of the draws; each task and split has a stream of its own.

    Raises:
        DataError: damaged files, or methods that predict other structures of a split.
    """
    rows = []
    for split in splits:
        values: dict[tuple[str, str, str], list[Floats]] = defaultdict(list)
        keys: dict[str, tuple[NDArray[np.int64], Path]] = {}
        for fit in fits:
            calibrations = read_calibrations(fit.calibrations)
            path = fit.predictions / f"{split}.parquet"
            data = _read(path, [(c.a, c.b) for c in calibrations])
            known, of = keys.setdefault(fit.task, (data.keys, path))
            if not np.array_equal(known, data.keys):
                raise DataError(f"predicts other structures than {of}: predict both again", file=path)
            sampled = _sample(data, draws, [seed, zlib.crc32(f"{fit.task}/{split}".encode())])
            for calibration, by_metric in zip(calibrations, sampled, strict=True):
                for metric, drawn in by_metric.items():
                    values[metric, fit.method, calibration.kind].append(drawn)
        for metric in METRICS:
            means = {key[1:]: np.mean(drawn, axis=0) for key, drawn in values.items() if key[0] == metric}
            rows += [{"split": split, "metric": metric, **row} for row in _against_best(metric, means)]
    with whole_file(output) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, lineterminator="\n")


def _against_best(metric: str, means: dict[tuple[str, str], Floats]) -> Iterator[dict[str, object]]:
    """Yield a row for each (method, calibration); the first entry of ``means`` is of the data as they are."""
    sign = -1.0 if metric in _HIGHER_IS_BETTER else 1.0
    defined = {key: value for key, value in means.items() if np.isfinite(value[0])}
    if not defined:
        return
    best = min(defined, key=lambda key: sign * defined[key][0])
    for (method, calibration), value in defined.items():
        difference = sign * (value - defined[best])
        # A draw of few structures may leave a correlation undefined: it says nothing either way.
        low, high = np.nanquantile(difference[1:], [0.025, 0.975])
        yield {
            "method": method,
            "calibration": calibration,
            "value": value[0],
            "best": "/".join(best),
            "difference": difference[0],
            "low": low,
            "high": high,
            "worse": bool(low > _ROUNDING * abs(value[0])),
        }


def _read(path: Path, calibrations: Sequence[tuple[float, float]]) -> _Split:
    structure, error, absolute = [], [], []
    nll: list[list[Floats]] = [[] for _ in calibrations]
    trace: list[list[Floats]] = [[] for _ in calibrations]
    levels: list[list[NDArray[np.int64]]] = [[] for _ in calibrations]
    level_keys: list[NDArray[np.int64]] = []
    first = 0
    for block in read_predictions(path):
        white = whiten(block, first, str(path))
        residual = block.target - block.mean
        of_atom = np.stack([block.part.astype(np.int64), block.structure], axis=1)
        starts = _starts(of_atom)
        group = _group(starts, len(of_atom))
        structure.append(of_atom)
        level_keys.append(of_atom[starts])
        absolute.append(np.abs(residual).sum(axis=1))
        error.append(np.sqrt(np.square(residual).sum(axis=1)))
        for i, (a, b) in enumerate(calibrations):
            variance = a * block.floor[:, :3] + b * np.maximum(block.spread[:, :3], 0.0)
            nll[i].append(white.scores(a, b)[0])
            trace[i].append(variance.sum(axis=1))
            levels[i].append(level_counts(residual, variance, group, len(starts)))
        first += len(block)
    if not structure:
        raise DataError("there are no atoms to compare on", file=path)
    of_atom = np.concatenate(structure)
    starts = _starts(of_atom)
    # A structure whose atoms lie in two blocks has counts from both.
    level_starts = _starts(np.concatenate(level_keys))

    return _Split(
        keys=of_atom[starts],
        index=_group(starts, len(of_atom)),
        absolute=_sums(absolute, starts),
        error=np.concatenate(error),
        nll=[_sums(values, starts) for values in nll],
        counts=[_sums(values, level_starts) for values in levels],
        trace=[np.concatenate(values) for values in trace],
    )


def _starts(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where rows (N, 2) differ from the one before them, the first included."""
    return np.flatnonzero(np.concatenate([[True], (keys[1:] != keys[:-1]).any(axis=1)]))


def _group(starts: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return the group of each of ``n`` rows, given where groups start."""
    return np.repeat(np.arange(len(starts)), np.diff(np.append(starts, n)))


def _sums(parts: Sequence[NDArray[np.generic]], starts: NDArray[np.int64]) -> Floats:
    return np.add.reduceat(np.concatenate(parts), starts, axis=0).astype(np.float64)


def _sample(data: _Split, draws: int, seed: Sequence[int]) -> list[dict[str, Floats]]:
    """Return for each calibration the metrics (1 + draws,): of the data as they are, then of each draw."""
    parts: list[list[dict[str, Floats]]] = [[] for _ in data.nll]
    errors = _Ranks(data.error)
    traces = [_Ranks(trace) for trace in data.trace]
    # A calibration often leaves the order as it is (always where the spread is a multiple of the floor): ranked once.
    same = [next(j for j in range(i + 1) if traces[j] == traces[i]) for i in range(len(traces))]
    sizes = np.bincount(data.index).astype(np.float64)
    for weights in _weights(len(data.keys), draws, seed, max(1, _WEIGHTS // len(data.index))):
        components = 3.0 * (weights @ sizes)
        mae = weights @ data.absolute / components
        atoms = weights[:, data.index]
        error_ranks = errors.centred(atoms)
        spearman: list[Floats] = []
        for i, (part, nll, counts) in enumerate(zip(parts, data.nll, data.counts, strict=True)):
            ranked = same[i] < i
            spearman.append(spearman[same[i]] if ranked else _correlation(atoms, error_ranks, traces[i].centred(atoms)))
            coverage = np.cumsum(weights @ counts, axis=1)[:, :-1] / components[:, None]
            part.append(
                {
                    "mae": mae,
                    "ece": np.abs(coverage - LEVELS).mean(axis=1),
                    "nll": weights @ nll / components,
                    "spearman": spearman[i],
                }
            )
    return [{metric: np.concatenate([p[metric] for p in part]) for metric in METRICS} for part in parts]


def _weights(structures: int, draws: int, seed: Sequence[int], most: int) -> Iterator[Floats]:
    """Yield how often each structure is drawn, (draws <= most, structures); the very first draw is each once."""
    yield np.ones((1, structures))
    rng = np.random.default_rng(seed)
    for start in range(0, draws, most):
        count = min(most, draws - start)
        yield rng.multinomial(structures, np.full(structures, 1.0 / structures), size=count).astype(np.float64)


class _Ranks:
    """Average ranks of values (N,) that occur with different weights."""

    def __init__(self, values: Floats) -> None:
        self._order = np.argsort(values, kind="stable")
        ordered = values[self._order]
        new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
        self._first = np.flatnonzero(new)
        self._group = np.empty(len(values), dtype=np.int64)
        self._group[self._order] = np.cumsum(new) - 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Ranks) and np.array_equal(self._group, other._group)

    __hash__ = None  # type: ignore[assignment]

    def centred(self, weights: Floats) -> Floats:
        """Return the ranks less their mean, (draws, N), for weights (draws, N)."""
        grouped = np.add.reduceat(weights[:, self._order], self._first, axis=1)
        middle = np.cumsum(grouped, axis=1) - grouped / 2.0
        ranks: Floats = (middle - grouped.sum(axis=1, keepdims=True) / 2.0)[:, self._group]
        return ranks


def _correlation(weights: Floats, x: Floats, y: Floats) -> Floats:
    """Return the weighted correlation of centred ranks, (draws,); NaN where either is constant."""
    covariance, xx, yy = (np.einsum("dn,dn,dn->d", weights, p, q) for p, q in ((x, y), (x, x), (y, y)))
    scale = np.sqrt(xx * yy)
    correlation: Floats = np.divide(covariance, scale, out=np.full(len(scale), np.nan), where=scale > 0.0)
    return correlation
