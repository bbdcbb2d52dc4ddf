"""Which methods the data can tell apart: a paired bootstrap over structures.

Structures are drawn with replacement, the same draw for every method, calibration and seed of a task, so that
what makes a structure hard falls out of the differences. Atoms of a structure stay together: their errors are
not independent. Seeds and tasks are averaged as in the table and are not resampled: the intervals say how much
the choice of test structures matters, not how much another training would.
Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile interval).
"""

import contextlib
import zlib
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from forceuq.bootstrap import METRICS, Bootstrap, bootstrap
from forceuq.calibration import read_calibrations
from forceuq.errors import DataError
from forceuq.files import whole_file
from forceuq.processes import ordered_map

_HIGHER_IS_BETTER = {"spearman"}
# Differences below this, relative to the value, are the order of summation.
_ROUNDING = 1e-9
# With fewer structures draws say nothing: those of one are all alike, and of three a draw in nine is of one only.
_FEWEST = 10

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluated:
    """One fit's files: its method, task and seed, the folder of its predictions, and its calibrations."""

    method: str
    task: str
    seed: int
    predictions: Path
    calibrations: Path


def compare(
    fits: Sequence[Evaluated],
    splits: Sequence[str],
    output: Path,
    *,
    draws: int = 1000,
    seed: int = 0,
    processes: int = 1,
) -> None:
    """Write, for one data set, how each method and calibration differs from the best of each split.

    Writes CSV with a row for each split, metric, method and calibration: ``value``, the mean over tasks and
    seeds; ``best``, the method and calibration with the best value (``method/calibration``); ``difference``
    from it, positive where this one is worse, with ``low`` and ``high``, the 2.5 and 97.5 % quantiles over the
    draws; ``worse``, whether ``low`` is above zero (and rounding); and ``structures``, how many there were to draw
    from, all tasks together. With fewer than ten ``low`` and ``high`` are empty and nothing is called worse. Metrics
    that a fit leaves undefined (a rank correlation of constants) have no row.

    Args:
        fits: of every method, task and seed; each method with the same tasks.
        splits: to compare on.
        output: the CSV.
        draws: bootstrap samples.
        seed: of the draws; each task and split has a stream of its own.
        processes: that work; the result does not depend on it.

    Raises:
        DataError: damaged files, or methods that predict other structures of a split.
    """
    parts = [_Part(fit, split, draws, seed, output.parent) for split in splits for fit in fits]
    work = ordered_map(_sampled, parts, min(processes, len(parts)))
    # Closed, so that what is left of the work is given up where a part fails.
    with contextlib.closing(cast("Generator[tuple[list[str], Bootstrap]]", work)) as sampled:
        rows = [row for split in splits for row in _of_split(split, fits, sampled)]
    with whole_file(output) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, lineterminator="\n")


@dataclass(frozen=True)
class _Part:
    """What one process does at a time: the draws of one fit on one split."""

    fit: Evaluated
    split: str
    draws: int
    seed: int
    folder: Path


def _sampled(part: _Part) -> tuple[list[str], Bootstrap]:
    """Return the kinds of calibration, and the metrics of each."""
    calibrations = read_calibrations(part.fit.calibrations)
    stream = [part.seed, zlib.crc32(f"{part.fit.task}/{part.split}".encode())]
    # Processes are what shares the work; beside them BLAS's threads would only wait for each other.
    with threadpool_limits(1):
        path = _predictions(part.fit, part.split)
        found = bootstrap(path, [(c.a, c.b) for c in calibrations], part.draws, stream, part.folder)
    return [c.kind for c in calibrations], found


def _predictions(fit: Evaluated, split: str) -> Path:
    return fit.predictions / f"{split}.parquet"


def _of_split(
    split: str, fits: Sequence[Evaluated], sampled: Iterator[tuple[list[str], Bootstrap]]
) -> Iterator[dict[str, object]]:
    values: dict[tuple[str, str, str], list[Floats]] = defaultdict(list)
    structures: dict[str, tuple[str, Path]] = {}
    drawn_from: dict[str, int] = {}
    for fit in fits:
        kinds, found = next(sampled)
        path = _predictions(fit, split)
        known, of = structures.setdefault(fit.task, (found.structures, path))
        if known != found.structures:
            raise DataError(f"predicts other structures than {of}: predict both again", file=path)
        drawn_from[fit.task] = found.n_structures
        for kind, metrics in zip(kinds, found.metrics, strict=True):
            for metric, drawn in metrics.items():
                values[metric, fit.method, kind].append(drawn)
    for metric in METRICS:
        means = {key[1:]: np.mean(drawn, axis=0) for key, drawn in values.items() if key[0] == metric}
        for row in _against_best(metric, means, sum(drawn_from.values())):
            yield {"split": split, "metric": metric, **row}


def _against_best(metric: str, means: dict[tuple[str, str], Floats], structures: int) -> Iterator[dict[str, object]]:
    """Yield a row for each (method, calibration); the first entry of ``means`` is of the data as they are."""
    sign = -1.0 if metric in _HIGHER_IS_BETTER else 1.0
    defined = {key: value for key, value in means.items() if np.isfinite(value[0])}
    if not defined:
        return
    best = min(defined, key=lambda key: sign * defined[key][0])
    for (method, calibration), value in defined.items():
        difference = sign * (value - defined[best])
        # A draw of few structures may leave a correlation undefined: it says nothing either way.
        known = structures >= _FEWEST
        low, high = np.nanquantile(difference[1:], [0.025, 0.975]) if known else (np.nan, np.nan)
        yield {
            "method": method,
            "calibration": calibration,
            "value": value[0],
            "best": "/".join(best),
            "difference": difference[0],
            "low": low,
            "high": high,
            "worse": bool(low > _ROUNDING * abs(value[0])),
            "structures": structures,
        }
