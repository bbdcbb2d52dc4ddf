"""The sufficient statistics of the Bayesian linear model: all that it needs of the data, in one pass."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from forceuq.bll.tensors import load_tensors
from forceuq.errors import FitError
from forceuq.files import whole_file

_SCHEMA = "bll-statistics"
_ROWS = 8192


@dataclass(frozen=True)
class SufficientStatistics:
    """Sums over the rows of a data set: the evidence and the posterior (eqs. 5, 7) follow from them alone.

    Products and sums are in double precision. Single precision products would be at best a third faster, and
    leave G of nearly collinear features indefinite by far more than the prior makes good.

    Args:
        gram: (D, D) G = Phi^T Phi.
        cross: (D, K) C = Phi^T Y.
        target: (K, K) S = Y^T Y.
        n: N, the number of rows.
    """

    gram: NDArray[np.float64]
    cross: NDArray[np.float64]
    target: NDArray[np.float64]
    n: int

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
        return SufficientStatistics(
            self.gram + other.gram, self.cross + other.cross, self.target + other.target, self.n + other.n
        )

    merge = __add__

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, the same bytes for the same statistics."""
        tensors = {
            "gram": self.gram,
            "cross": self.cross,
            "target": self.target,
            "n": np.array(self.n, dtype=np.int64),
        }
        with whole_file(path) as temporary:
            save_file(tensors, temporary, metadata={"forceuq": _SCHEMA})

    @classmethod
    def load(cls, path: str | Path) -> "SufficientStatistics":
        """Read what ``save`` wrote.

        Raises:
            DataError: the file is damaged or not of statistics.
        """
        tensors = load_tensors(path, _SCHEMA, ("gram", "cross", "target", "n"))
        return cls(tensors["gram"], tensors["cross"], tensors["target"], int(tensors["n"]))


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
    total = SufficientStatistics.empty(width, targets)
    n = 0
    for phi, y in blocks:
        if phi.ndim != 2 or phi.shape[1] != width or y.shape != (len(phi), targets):
            raise FitError(
                f"after row {n}: features {phi.shape} and targets {y.shape}, expected (n, {width}) and (n, {targets})"
            )
        for start in range(0, len(phi), _ROWS):
            features = phi[start : start + _ROWS].astype(np.float64)
            values = np.asarray(y[start : start + _ROWS], dtype=np.float64)
            gram = features.T @ features  # NumPy calls dsyrk: half the work, symmetric to the last bit
            target = values.T @ values
            # A value that is not finite makes its diagonal element so: rows are searched only then.
            if not (np.isfinite(gram.diagonal()).all() and np.isfinite(target.diagonal()).all()):
                _name_bad_row(features, values, n + start)
            total.gram[...] += gram
            total.cross[...] += features.T @ values
            total.target[...] += target
        n += len(phi)
    return SufficientStatistics(total.gram, total.cross, total.target, n)


def _name_bad_row(features: NDArray[np.float64], values: NDArray[np.float64], first: int) -> None:
    for name, array in (("feature", features), ("target", values)):
        bad = ~np.isfinite(array)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise FitError(f"{name} {column} of row {first + row} is {array[row, column]}, not a finite number")
    raise FitError(f"the squares of rows {first} and after overflow: rescale the features or targets")
