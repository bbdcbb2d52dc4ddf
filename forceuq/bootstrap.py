"""The metrics of a split whose structures are drawn with replacement, in memory that does not grow with its atoms.

Atoms of a structure stay together: their errors are not independent. Mean absolute errors, likelihoods and coverages
are sums over structures, which a draw weighs. A rank correlation is not; ranking all atoms again for each draw would be
most of the work. For draws, errors and uncertainties are cut into 2,048 groups of equal share (512 of more than 262,144
atoms), each with one rank; how many of a structure's atoms are in which pair of groups is then all that a draw has to
add up. With fewer distinct values than groups, none of them rare, that is exact. With more, a draw's correlation is off
by some hundredth of what draws differ by. The data's own correlation is always exact.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from forceuq.errors import DataError
from forceuq.metrics import LEVELS, level_counts
from forceuq.predictions import PredictionBlock, read_predictions
from forceuq.ranking import Ranking, folder_named
from forceuq.whitening import whiten

METRICS = ("mae", "ece", "spearman", "nll")
# Atoms, at most, and groups. Few atoms are in few pairs of groups, however many groups there are; of more atoms, pairs
# are what takes memory and time.
_GROUPS = {2**18: 2048, 2**62: 512}
# Values that the groups' bounds are taken from: all, or about as many.
_SAMPLE = 2**18
# Atoms and structures of a record, which are added up at a time.
_ATOMS, _STRUCTURES = 2**19, 2**16
# Bytes of the draws' weights, and of their pairs of groups, that are held at a time.
_BYTES = 2**25
# Cells that are ranked at a time: they stay in the processor's cache.
_SLICE = 2**13
# Bytes of a temporary file that stay in memory.
_SPOOL = 2**25
_KEPT = "what the bootstrap draws from"

Floats = NDArray[np.float64]
Weights = NDArray[np.uint16]


@dataclass(frozen=True)
class Bootstrap:
    """One fit's metrics on one split.

    Args:
        structures: a digest of which structures there are, in which order.
        n_structures: how many.
        metrics: for each calibration and metric (1 + draws,): of the data as they are, then of each draw; NaN where
            undefined (a rank correlation of constants).
    """

    structures: str
    n_structures: int
    metrics: tuple[dict[str, Floats], ...]


def bootstrap(
    path: Path,
    calibrations: Sequence[tuple[float, float]],
    draws: int,
    seed: Sequence[int],
    folder: Path | None = None,
) -> Bootstrap:
    """Return the metrics of a split as it is and of draws of its structures.

    Predictions of the same structures have the same draws, so that differences are of pairs. Efron and Tibshirani, An
    Introduction to the Bootstrap (1993).

    Args:
        path: the predictions.
        calibrations: the pairs (a, b).
        draws: bootstrap samples.
        seed: of the draws.
        folder: where temporary files may be, of up to 120 bytes an atom and 24 a structure, and for each calibration 4
            an atom and some 100 a structure (200 where one has more than 85 atoms); None: the system's.

    Raises:
        DataError: no atoms, or predictions that cannot be used.
        OSError: a temporary file cannot be written; its folder is named.
    """
    sums, traces = _Records(folder), _Records(folder)
    structures, spearman = _summed(path, calibrations, sums, traces, folder)
    grids = _grids(traces, calibrations, folder)
    parts: list[list[dict[str, Floats]]] = [[] for _ in calibrations]
    most = max(1, _BYTES // (8 * max(structures.n, *(grid.size for grid in grids))))
    for weights in _weights(structures.n, draws, seed, most):
        for part, found in zip(parts, _metrics(weights, sums, grids), strict=True):
            part.append(found)
    metrics = tuple({name: np.concatenate([p[name] for p in part]) for name in METRICS} for part in parts)
    for own, value in zip(metrics, spearman, strict=True):
        own["spearman"][0] = value
    return Bootstrap(structures.digest.hexdigest(), structures.n, metrics)


class _Records:
    """Tuples of arrays in a temporary file, one after another; they are read in that order, any number of times."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        # It goes with this object, and with the process however that ends.
        self._file = tempfile.SpooledTemporaryFile(_SPOOL, dir=None if folder is None else str(folder))  # noqa: SIM115
        self._records: list[tuple[int, int]] = []

    def append(self, *arrays: NDArray[Any]) -> None:
        with folder_named(self._folder, _KEPT):
            self._records.append((self._file.seek(0, 2), len(arrays)))
            for array in arrays:
                np.save(self._file, array, allow_pickle=False)

    def __iter__(self) -> Iterator[tuple[NDArray[Any], ...]]:
        for start, count in self._records:
            # What is written last may reach the disk only here.
            with folder_named(self._folder, _KEPT):
                self._file.seek(start)
                arrays = tuple(np.load(self._file, allow_pickle=False) for _ in range(count))
            yield arrays


class _Structures:
    """Numbers structures, whose atoms follow each other, through any number of blocks."""

    def __init__(self) -> None:
        self.n = 0
        self.digest = hashlib.blake2b(digest_size=16)
        self._last = np.full((1, 2), -1, dtype=np.int64)

    def of(self, block: PredictionBlock) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first atom in the block, and the number, of each of its structures."""
        keys = np.stack([block.part.astype(np.int64), block.structure], axis=1)
        new = (keys != np.concatenate([self._last, keys[:-1]])).any(axis=1)
        self.digest.update(keys[new].tobytes())
        self._last = keys[-1:]
        starts = np.flatnonzero(new)
        if not new[0]:  # goes on from the block before
            starts = np.append(0, starts)
        numbers = self.n + np.arange(len(starts)) - (not new[0])
        self.n += int(new.sum())
        return starts, numbers


def _summed(
    path: Path,
    calibrations: Sequence[tuple[float, float]],
    sums: _Records,
    traces: _Records,
    folder: Path | None,
) -> tuple[_Structures, list[float]]:
    """Write sums over structures and, of each atom, what it is ranked by; return the exact rank correlations.

    A record of ``sums`` has for R structures their number, their atoms, the sum of absolute errors, for each of K
    calibrations the sum of the negative log-likelihoods (K, R), and components by the level that their interval begins
    to hold them (K, R, 100); one of ``traces`` for their n atoms (n, 3) the error and the traces of floor and spread. A
    structure that goes on from one block of predictions to the next is there twice.
    """
    structures, ranking = _Structures(), Ranking(folder)
    first = 0
    pending: list[tuple[NDArray[Any], ...]] = []
    held = np.zeros(2, dtype=np.int64)
    for block in read_predictions(path):
        starts, numbers = structures.of(block)
        white = whiten(block, first, str(path))
        first += len(block)
        residual = block.target - block.mean
        sizes = np.diff(np.append(starts, len(block)))
        group = np.repeat(np.arange(len(starts)), sizes)
        nll, counts = [], []
        for a, b in calibrations:
            # As for the metrics: a spread of float32 rounding may lie a hair under zero.
            variance = a * block.floor[:, :3] + b * np.maximum(block.spread[:, :3], 0.0)
            nll.append(np.add.reduceat(white.scores(a, b)[0], starts))
            count = level_counts(residual, variance, group, len(starts))
            # A byte is enough for structures of up to 85 atoms, and all of it is read again for every few draws.
            counts.append(count.astype(np.min_scalar_type(count.max())))
        absolute = np.add.reduceat(np.abs(residual).sum(axis=1), starts)
        ranked = [np.sqrt((residual**2).sum(axis=1)), block.floor[:, :3].sum(axis=1), block.spread[:, :3].sum(axis=1)]
        ranking.add(*ranked)
        if held[0] + len(block) > _ATOMS or held[1] + len(starts) > _STRUCTURES:
            _flush(pending, sums, traces)
            held[:] = 0
        held += len(block), len(starts)
        pending.append((numbers, sizes, absolute, np.stack(nll), np.stack(counts), np.stack(ranked, axis=1)))
    if not first:
        raise DataError("there are no atoms to compare on", file=path)
    _flush(pending, sums, traces)
    spearman = (ranking.against(a, b).spearman[0] for a, b in calibrations)
    return structures, [np.nan if value is None else value for value in spearman]


def _flush(pending: list[tuple[NDArray[Any], ...]], sums: _Records, traces: _Records) -> None:
    if not pending:
        return
    *by_structure, nll, counts, ranked = zip(*pending, strict=True)
    sums.append(*map(np.concatenate, by_structure), *(np.concatenate(parts, axis=1) for parts in (nll, counts)))
    traces.append(np.concatenate(ranked))
    pending.clear()


@dataclass(frozen=True, eq=False)
class _Grid:
    """Atoms by the group of their error and that of their uncertainty; of all such cells, those that have atoms.

    Args:
        atoms: for each record the cell of each atom, counted with those that have none.
        number: of each cell, counted without those.
        errors: (size,) the group of the error in each cell.
        traces: (size,) that of the uncertainty.
    """

    atoms: _Records
    number: NDArray[np.int32]
    errors: NDArray[np.int64]
    traces: NDArray[np.int64]

    @property
    def size(self) -> int:
        return len(self.errors)

    def drawn(self, cell: NDArray[np.int32], sizes: NDArray[np.int64], weights: Floats) -> Floats:
        """Return (size, draws), how many atoms of a record are in each cell, given its structures' (R, draws)."""
        ends = np.append(0, np.cumsum(sizes))
        of_structure = sparse.csc_array((np.ones(len(cell)), self.number[cell], ends), shape=(self.size, len(sizes)))
        atoms: Floats = np.asarray(of_structure @ weights)
        return atoms

    def correlation(self, cells: Floats) -> Floats:
        """Return the rank correlation (draws,), given the atoms in each cell (size, draws); NaN for constants."""
        error, trace = _ranks(self.errors, cells), _ranks(self.traces, cells)
        products = np.zeros((3, cells.shape[1]))
        for start in range(0, self.size, _SLICE):
            part = slice(start, start + _SLICE)
            x, y = error[self.errors[part]], trace[self.traces[part]]
            products += [np.einsum("cd,cd,cd->d", cells[part], *two) for two in ((x, y), (x, x), (y, y))]
        scale = np.sqrt(products[1] * products[2])
        correlation: Floats = np.divide(products[0], scale, out=np.full(len(scale), np.nan), where=scale > 0.0)
        return correlation


def _grids(traces: _Records, calibrations: Sequence[tuple[float, float]], folder: Path | None) -> list[_Grid]:
    """Return the grid of each calibration; those that leave the order as it is share one."""
    n = sum(len(ranked) for (ranked,) in traces)
    # At random: every k-th may be the same atom of each structure, whose errors are not those of the others.
    rng = np.random.default_rng(0)
    sample = np.concatenate([ranked[rng.random(len(ranked)) < _SAMPLE / n] for (ranked,) in traces])
    groups = next(groups for most, groups in _GROUPS.items() if n <= most)
    errors = _bounds(sample[:, 0], groups)
    grids: dict[bytes, _Grid] = {}
    order = []
    for a, b in calibrations:
        bounds = _bounds(a * sample[:, 1] + b * sample[:, 2], groups)
        shape = len(errors) + 1, len(bounds) + 1
        atoms, occupied = _Records(folder), np.zeros(shape[0] * shape[1], dtype=bool)
        digest = hashlib.blake2b(str(shape).encode())
        for (ranked,) in traces:
            trace = np.searchsorted(bounds, a * ranked[:, 1] + b * ranked[:, 2])
            cell = (np.searchsorted(errors, ranked[:, 0]) * shape[1] + trace).astype(np.int32)
            occupied[cell] = True
            digest.update(cell.data)
            atoms.append(cell)
        grid = _Grid(atoms, (np.cumsum(occupied) - 1).astype(np.int32), *np.divmod(np.flatnonzero(occupied), shape[1]))
        order.append(grids.setdefault(digest.digest(), grid))
    return order


def _bounds(sample: Floats, groups: int) -> Floats:
    """Return what groups end with (the last one with the largest value): groups of much the same size.

    Each value of which there are many is a group of its own; where there are few values, every one is.
    """
    values = np.unique(sample)
    if len(values) <= groups:
        return values
    ordered = np.sort(sample)
    ends, times = np.unique(ordered[np.arange(1, groups) * len(sample) // groups], return_counts=True)
    return np.union1d(ends, np.nextafter(ends[times > 1], -np.inf))


def _ranks(groups: NDArray[np.int64], cells: Floats) -> Floats:
    """Return each group's average rank less the mean of all, (groups, draws)."""
    cell = np.arange(len(groups))
    members = sparse.csr_array((np.ones(len(groups)), (groups, cell)), shape=(int(groups.max()) + 1, len(groups)))
    atoms: Floats = np.asarray(members @ cells)
    ranks: Floats = np.cumsum(atoms, axis=0) - atoms / 2.0 - atoms.sum(axis=0) / 2.0
    return ranks


def _weights(structures: int, draws: int, seed: Sequence[int], most: int) -> Iterator[Weights]:
    """Yield how often each structure is drawn, (draws <= most, structures); the very first draw is each once."""
    yield np.ones((1, structures), dtype=np.uint16)
    rng = np.random.default_rng(seed)
    for start in range(0, draws, most):
        weights = np.empty((min(most, draws - start), structures), dtype=np.uint16)
        for row in weights:
            row[:] = np.bincount(rng.integers(structures, size=structures), minlength=structures)
        yield weights


def _metrics(weights: Weights, sums: _Records, grids: Sequence[_Grid]) -> Iterator[dict[str, Floats]]:
    """Yield for each calibration the metrics (draws,), given the weights (draws, structures)."""
    draws, kinds = len(weights), len(grids)
    components, absolute = np.zeros(draws), np.zeros(draws)
    nll, counts = np.zeros((kinds, draws)), np.zeros((kinds, len(LEVELS) + 1, draws))
    cells = {grid: np.zeros((grid.size, draws)) for grid in grids}
    records = zip(sums, *(grid.atoms for grid in cells), strict=True)
    for (number, sizes, errors, likelihoods, levels), *atoms in records:
        times = np.ascontiguousarray(weights[:, number].T, dtype=np.float64)
        components += 3.0 * (sizes @ times)
        absolute += errors @ times
        nll += likelihoods @ times
        for total, level in zip(counts, levels, strict=True):
            total += level.T.astype(np.float64) @ times
        for (grid, drawn), (cell,) in zip(cells.items(), atoms, strict=True):
            drawn += grid.drawn(cell, sizes, times)
    spearman = {grid: grid.correlation(drawn) for grid, drawn in cells.items()}
    for grid, likelihood, level in zip(grids, nll, counts, strict=True):
        coverage = np.cumsum(level, axis=0)[:-1] / components
        yield {
            "mae": absolute / components,
            "ece": np.abs(coverage - LEVELS[:, None]).mean(axis=0),
            "nll": likelihood / components,
            "spearman": spearman[grid],
        }
