"""Rank statistics of any number of atoms: exact, in memory that does not grow with them.

Atoms that are more than are sorted at a time lie in a temporary file. They are cut into pieces by values of which some
are met in the data, each piece with all atoms of equal value, and the pieces are sorted one by one; a value that more
atoms share than are sorted at a time is a piece of its own, which needs no sorting.
"""

import contextlib
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Value = tuple[float | None, str | None]

FRACTIONS = np.arange(0, 100) / 100.0
# Rows that are sorted at a time, and of those in a file how many are read at a time.
_HELD = 2**18
_BLOCK = 2**16
# Values that pieces may be cut at: enough for pieces of much the same size.
_CUTS = 2**10
_ROW_BYTES = 32
_ERROR, _FLOOR, _SPREAD, _RANK = range(4)


class _Rows:
    """Rows of four numbers, appended one block after another; in a file once they are more than are held.

    Args:
        held: how many rows stay in memory, at most.
        folder: where the file is; None: the system's folder for temporary files.
    """

    def __init__(self, held: int, folder: Path | None) -> None:
        self.n = 0
        self._held, self._folder = held, folder
        # It goes with this object, and with the process however that ends.
        self._file = tempfile.SpooledTemporaryFile(_ROW_BYTES * held, dir=None if folder is None else str(folder))  # noqa: SIM115

    def append(self, rows: Floats) -> None:
        self.put(self.n, rows)
        self.n += len(rows)

    def put(self, first: int, rows: Floats) -> None:
        self._file.seek(_ROW_BYTES * first)
        self._file.write(rows.data)

    def blocks(self, first: int, last: int) -> Iterator[Floats]:
        for start in range(first, last, _BLOCK):
            self._file.seek(_ROW_BYTES * start)
            yield np.frombuffer(self._file.read(_ROW_BYTES * (min(start + _BLOCK, last) - start))).reshape(-1, 4)

    def in_pieces(self, key: Callable[[Floats], Floats]) -> Iterator["_Piece"]:
        """Yield all rows in pieces that are in the order of ``key``; equal keys are in one piece."""
        if self.n <= self._held:
            yield _Piece(self, 0, self.n, False)
            return
        step = -(-self.n // _CUTS)
        cuts = np.unique(np.concatenate([key(block)[::step].copy() for block in self.blocks(0, self.n)]))

        def bins(rows: Floats) -> NDArray[np.int64]:
            # Odd: as large as a cut; even: between two.
            values = key(rows)
            at = np.searchsorted(cuts, values)
            found: NDArray[np.int64] = 2 * at + (cuts[np.minimum(at, len(cuts) - 1)] == values)
            return found

        counts = np.zeros(2 * len(cuts) + 1, dtype=np.int64)
        for block in self.blocks(0, self.n):
            counts += np.bincount(bins(block), minlength=len(counts))
        piece = _grouped(counts, self._held)
        sizes = np.bincount(piece, counts).astype(np.int64)
        ends = np.cumsum(sizes)
        sorted_in = self._scattered(lambda rows: piece[bins(rows)], ends - sizes)
        tied = set(piece[1::2][counts[1::2] > self._held].tolist())
        for number, (end, size) in enumerate(zip(ends.tolist(), sizes.tolist(), strict=True)):
            if size:
                yield _Piece(sorted_in, end - size, end, number in tied)

    def _scattered(self, piece: Callable[[Floats], NDArray[np.int64]], at: NDArray[np.int64]) -> "_Rows":
        """Return the same rows in a file, those of each piece from its place on."""
        found = _Rows(self._held, self._folder)
        found._file.rollover()
        at = at.copy()
        for block in self.blocks(0, self.n):
            of = piece(block)
            order = np.argsort(of, kind="stable")
            number, starts = np.unique(of[order], return_index=True)
            for part, (start, stop) in zip(number, itertools.pairwise([*starts, len(of)]), strict=True):
                found.put(int(at[part]), block[order[start:stop]])
                at[part] += stop - start
        return found


class _Piece(NamedTuple):
    rows: _Rows
    first: int
    last: int
    tied: bool  # one key, and more rows than are sorted

    def blocks(self) -> Iterator[Floats]:
        return self.rows.blocks(self.first, self.last)


def _grouped(counts: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return for each bin the piece that it is in: neighbours together while they are ``most`` rows."""
    piece = np.empty(len(counts), dtype=np.int64)
    number, size = 0, 0
    for index, count in enumerate(counts.tolist()):
        if size and size + count > most:
            number, size = number + 1, 0
        piece[index] = number
        size += count
    return piece


class _Curve:
    """The mean of the first k of n values over k, at what ``FRACTIONS`` leave, and summed over all k."""

    def __init__(self, n: int) -> None:
        # Taking out floor(f n) atoms leaves n - floor(f n); 1e-9 keeps 0.29 * 100 from falling to 28.
        self._at = n - 1 - np.floor(FRACTIONS * n + 1e-9).astype(np.int64)
        self._done, self._areas = 0, [0.0]
        self.total = 0.0
        self.points = np.zeros(len(FRACTIONS))

    def add(self, values: Floats) -> None:
        if not len(values):
            return
        sums = np.cumsum(np.concatenate([[self.total], values]))[1:]
        means = sums / np.arange(self._done + 1, self._done + len(values) + 1)
        here = (self._at >= self._done) & (self._at < self._done + len(values))
        self.points[here] = means[self._at[here] - self._done]
        self._areas.append(float(means.sum()))
        self._done, self.total = self._done + len(values), float(sums[-1])

    @property
    def area(self) -> float:
        return math.fsum(self._areas)


@dataclass(frozen=True)
class RankStatistics:
    """How well an uncertainty orders the errors.

    Args:
        spearman: rank correlation, Pearson's of the average ranks, or None and the reason.
        curve: (100,) error left at ``FRACTIONS``, relative to that of all; None where all errors are zero.
        oracle: (100,) likewise, with the errors known.
        ause: area between them, or None and the reason.
    """

    spearman: Value
    curve: Floats | None
    oracle: Floats | None
    ause: Value


class Ranking:
    """The error norms of a split's atoms, to be ranked against uncertainties a floor + b spread.

    Args:
        folder: where temporary files may be, of up to 96 bytes an atom; None: the system's.
        held: atoms that are sorted at a time, some 130 bytes each; more than these need the file.
    """

    def __init__(self, folder: Path | None = None, held: int = _HELD) -> None:
        self._folder, self._held = folder, held
        self._rows = _Rows(held, folder)
        self._ranked = False
        self._squares = 0.0
        self._oracle = _Curve(0)

    def add(self, error: Floats, floor: Floats, spread: Floats) -> None:
        """Add atoms: the norms of their errors, eV/Å, and the traces of floor and spread, (eV/Å)², each (n,).

        Raises:
            OSError: the temporary file cannot be written; its folder is named.
        """
        with folder_named(self._folder, "what is ranked, up to 96 bytes an atom"):
            self._rows.append(np.stack([error, floor, spread, np.zeros(len(error))], axis=1))

    def against(self, a: float, b: float) -> RankStatistics:
        """Return the statistics for the uncertainty sqrt(a floor + b spread).

        The trace stands for its root: the order is the same, and rounding in the root would add ties.

        Raises:
            OSError: as in ``add``.
        """
        with folder_named(self._folder, "what is ranked, up to 96 bytes an atom"):
            if not self._ranked:
                self._rank_errors()
            return self._against(a, b)

    def _against(self, a: float, b: float) -> RankStatistics:
        n, middle = self._rows.n, (self._rows.n + 1) / 2.0
        products, squares, curve = [], [], _Curve(n)
        for rows, ranks in _in_order(self._rows, lambda rows: a * rows[:, _FLOOR] + b * rows[:, _SPREAD]):
            centred = ranks - middle
            products.append(float((centred * (rows[:, _RANK] - middle)).sum()))
            squares.append(float(np.square(centred).sum()))
            curve.add(rows[:, _ERROR])
        spearman = self._spearman(math.fsum(products), math.fsum(squares))
        if self._oracle.total == 0.0:
            return RankStatistics(spearman, None, None, (None, "undefined: every residual is zero"))
        total = self._oracle.total
        # Divided by what is not yet divided by n, which is zero where the smallest numbers are all there is.
        area = (curve.area - self._oracle.area) / total
        return RankStatistics(spearman, curve.points / total * n, self._oracle.points / total * n, (area, None))

    def _rank_errors(self) -> None:
        n = self._rows.n
        ranked, squares, self._oracle = _Rows(self._held, self._folder), [], _Curve(n)
        for rows, ranks in _in_order(self._rows, lambda rows: rows[:, _ERROR]):
            squares.append(float(np.square(ranks - (n + 1) / 2.0).sum()))
            self._oracle.add(rows[:, _ERROR])
            ranked.append(np.column_stack([rows[:, :_RANK], ranks]))
        self._rows, self._squares, self._ranked = ranked, math.fsum(squares), True

    def _spearman(self, products: float, squares: float) -> Value:
        if self._rows.n < 2:
            return None, "undefined for a single atom"
        if squares == 0.0:
            return None, "undefined: every atom has the same uncertainty"
        if self._squares == 0.0:
            return None, "undefined: every atom has the same error"
        return min(1.0, max(-1.0, products / math.sqrt(self._squares * squares))), None


@contextlib.contextmanager
def folder_named(folder: Path | None, what: str) -> Iterator[None]:
    """Name the folder, and what was to be kept there, where a temporary file cannot be written or read.

    Args:
        folder: where it is; None: the system's.
        what: is kept in it.

    Raises:
        OSError: the same one, with both.
    """
    try:
        yield
    except OSError as error:
        said = f"{error.strerror}, in a temporary file of {what}: make room there"
        raise OSError(error.errno, said, str(folder or tempfile.gettempdir())) from error


def _in_order(rows: _Rows, key: Callable[[Floats], Floats]) -> Iterator[tuple[Floats, Floats]]:
    """Yield all rows in the order of ``key`` with their average ranks; errors are the means over equal keys."""
    for piece in rows.in_pieces(key):
        if not piece.tied:
            whole = np.concatenate([np.empty((0, 4)), *piece.blocks()])
            yield _sorted(whole, key(whole), piece.first)
            continue
        size = piece.last - piece.first
        mean = math.fsum(float(block[:, _ERROR].sum()) for block in piece.blocks()) / size
        for block in piece.blocks():
            shared = block.copy()
            shared[:, _ERROR] = mean
            yield shared, np.full(len(block), piece.first + (size + 1) / 2.0)


def _sorted(piece: Floats, values: Floats, before: int) -> tuple[Floats, Floats]:
    order = np.argsort(values, kind="stable")
    piece, values = piece[order], values[order]
    n = len(values)
    first = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    if len(first) == n:
        return piece, before + np.arange(1.0, n + 1.0)
    sizes = np.diff(np.append(first, n))
    piece[:, _ERROR] = np.repeat(np.add.reduceat(piece[:, _ERROR], first) / sizes, sizes)
    return piece, np.repeat(before + first + (sizes + 1) / 2.0, sizes)
