"""The sufficient statistics of the Bayesian linear model: all that it needs of the data, in one pass."""

import functools
import hashlib
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from forceuq.bll.rank_update import add_product
from forceuq.bll.tensors import load_tensors
from forceuq.errors import DataError, FitError
from forceuq.files import whole_file

_SCHEMA = "bll-statistics-2"
# Rows that are summed to ordinary precision; and those of them that are multiplied at a time, which stay in the
# processor's cache, also where it is small.
_ROWS = 8448
_RUN = 384
_COLUMNS = 4

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SufficientStatistics:
    """Sums over the rows of a data set: the evidence and the posterior (eqs. 5, 7) follow from them alone.

    Products are in double precision: in single precision they would be twice as fast, and leave G of nearly
    collinear features indefinite by far more than the prior makes good. Sums of products of blocks are kept to
    twice that precision (Knuth's two-sum), so that statistics of shards add up to the same bits in any order and
    grouping.

    Args:
        gram: (D, D) G = Phi^T Phi.
        cross: (D, K) C = Phi^T Y.
        target: (K, K) S = Y^T Y.
        n: N, the number of rows.
        low: (D + K, D + K) what rounding took from [[G, C], [C^T, S]]; None: nothing.
    """

    gram: Floats
    cross: Floats
    target: Floats
    n: int
    low: Floats | None = None

    @classmethod
    def empty(cls, width: int, targets: int = 3) -> "SufficientStatistics":
        """Return the statistics of no rows."""
        return cls(np.zeros((width, width)), np.zeros((width, targets)), np.zeros((targets, targets)), 0)

    @property
    def width(self) -> int:
        """D, the number of features."""
        return len(self.gram)

    @property
    def targets(self) -> int:
        """K, targets a row."""
        return len(self.target)

    def __add__(self, other: "SufficientStatistics") -> "SufficientStatistics":
        """Return the statistics of both data sets together."""
        if (self.width, self.targets) != (other.width, other.targets):
            raise FitError(
                f"statistics of {self.width} features and {self.targets} targets do not add to those of"
                f" {other.width} and {other.targets}"
            )
        high, low = _two_sum(self._joint(), other._joint())
        low = low + (self._low() + other._low())
        return _from_joint(*_two_sum(high, low), self.width, self.n + other.n)

    merge = __add__

    def _joint(self) -> Floats:
        return np.block([[self.gram, self.cross], [self.cross.T, self.target]])

    def _low(self) -> Floats:
        size = self.width + self.targets
        return np.zeros((size, size)) if self.low is None else self.low

    def save(self, path: str | Path, of: str = "") -> None:
        """Write a safetensors file, the same bytes for the same statistics.

        Args:
            path: the file.
            of: digest of what the statistics are of.
        """
        tensors: dict[str, NDArray[Any]] = {
            "gram": self.gram,
            "cross": self.cross,
            "target": self.target,
            "low": self._low(),
            "n": np.array(self.n, dtype=np.int64),
            "of": np.frombuffer(of.encode(), dtype=np.uint8),
        }
        tensors["sha256"] = _digest(tensors)
        with whole_file(path) as temporary:
            save_file(tensors, temporary, metadata={"forceuq": _SCHEMA})

    @classmethod
    def load(cls, path: str | Path, of: str = "") -> "SufficientStatistics":
        """Read what ``save`` wrote.

        Args:
            path: the file.
            of: digest of what the statistics must be of.

        Raises:
            DataError: the file is damaged, not of statistics, or of something else.
        """
        tensors = load_tensors(path, _SCHEMA, ("gram", "cross", "target", "low", "n", "of", "sha256"))
        if not np.array_equal(tensors.pop("sha256"), _digest(tensors)):
            raise DataError("altered since it was written: remove it and make it again", file=path)
        if tensors["of"].tobytes() != of.encode():
            raise DataError("is of other features or another head: remove it and make it again", file=path)
        return cls(tensors["gram"], tensors["cross"], tensors["target"], int(tensors["n"]), tensors["low"])


def accumulate(
    blocks: Iterable[tuple[NDArray[Any], NDArray[Any]]], width: int, targets: int = 3
) -> SufficientStatistics:
    """Return the statistics of a stream of blocks, in memory that does not grow with the stream.

    Args:
        blocks: pairs of features (n, D), usually float32, and targets (n, K).
        width: D.
        targets: K.

    Raises:
        FitError: a block of another shape, or with a value that is not finite.
    """
    # Features and targets side by side: one symmetric product instead of three, two of them thin. Columns of zeros
    # make the width one that BLAS has no remainder of: some 2 % faster. Lower triangles until the end.
    size = width + targets
    padded = -(-size // _COLUMNS) * _COLUMNS
    high, low = np.zeros((padded, padded)), np.zeros((padded, padded))
    product, rows = np.zeros((padded, padded)), np.zeros((_RUN, padded))
    n = 0
    for phi, y in blocks:
        if phi.ndim != 2 or phi.shape[1] != width or y.shape != (len(phi), targets):
            raise FitError(
                f"after row {n}: features {phi.shape} and targets {y.shape}, expected (n, {width}) and (n, {targets})"
            )
        for start in range(0, len(phi), _ROWS):
            stop = min(start + _ROWS, len(phi))
            product[:] = 0
            for first in range(start, stop, _RUN):
                last = min(first + _RUN, stop)
                part = rows[: last - first]
                part[:, :width] = phi[first:last]
                part[:, width:size] = y[first:last]
                add_product(product, part)
            # A value that is not finite makes its diagonal element so: rows are searched only then.
            if not np.isfinite(product.diagonal()).all():
                _name_bad_row(phi[start:stop], y[start:stop], n + start)
            high, lost = _two_sum(high, product)
            low += lost
        n += len(phi)
    joint, rest = (_mirrored(sums[:size, :size]) for sums in _two_sum(high, low))
    return _from_joint(joint, rest, width, n)


def merged(statistics: Iterable[SufficientStatistics]) -> SufficientStatistics:
    """Return the statistics of several data sets (at least one) together: the same bits in any order."""
    return functools.reduce(operator.add, statistics)


def _digest(tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + np.ascontiguousarray(tensors[name]).tobytes())
    return np.frombuffer(digest.digest(), dtype=np.uint8)


def _two_sum(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Return the rounded sum and, exactly, what rounding took from it (Knuth 1969)."""
    total = a + b
    from_b = total - a
    return total, (a - (total - from_b)) + (b - from_b)


def _from_joint(joint: Floats, low: Floats, width: int, n: int) -> SufficientStatistics:
    gram, cross, target = joint[:width, :width], joint[:width, width:], joint[width:, width:]
    return SufficientStatistics(gram.copy(), cross.copy(), target.copy(), n, low)


def _mirrored(lower: Floats) -> Floats:
    """Return the symmetric matrix of a lower triangle."""
    return np.asarray(np.tril(lower) + np.tril(lower, -1).T)


def _name_bad_row(features: NDArray[Any], values: NDArray[Any], first: int) -> None:
    for name, array in (("feature", features), ("target", values)):
        bad = ~np.isfinite(array)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise FitError(f"{name} {column} of row {first + row} is {array[row, column]}, not a finite number")
    raise FitError(f"the squares of rows {first} and after overflow: rescale the features or targets")
