"""The covariance of the training residuals: what a prediction without a noise model is given as its floor."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forceuq.bll.tensors import load_tensors
from forceuq.errors import DataError, FitError
from forceuq.features.cache import FeatureReader
from forceuq.files import whole_file

_SCHEMA = "residual-covariance"
_FILE = "noise.safetensors"
# Below this share of the largest eigenvalue, a direction has no variance but rounding.
_SINGULAR = 1e-12


def residual_covariance(
    blocks: Iterable[tuple[NDArray[Any], NDArray[np.float64]]],
    over_all: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda sums: sums,
) -> NDArray[np.float64]:
    """Return R^T R / N of residuals, (3, 3) (eV/Å)².

    About zero and not about the residuals' mean: it is the maximum-likelihood covariance of Gaussian noise
    around the predictions as they are, as the BLL's Sigma_e is.

    Args:
        blocks: of n atoms each the structures' rows or ids (n,), for messages, and the residuals (n, 3), eV/Å.
        over_all: adds up sums of this process's blocks and those of others that have the rest.

    Raises:
        FitError: there are no atoms; a residual that is not finite, naming the structure; residuals that do not
            span three dimensions, so that no density has this covariance.
    """
    total, n = np.zeros((3, 3)), 0
    for structures, residuals in blocks:
        finite = np.isfinite(residuals).all(axis=1)
        if not finite.all():
            row = int(np.argmin(finite))
            raise FitError(
                f"structure {structures[row]}: a training residual is {residuals[row].tolist()}; look at this"
                " structure's forces"
            )
        r = np.asarray(residuals, dtype=np.float64)
        total += r.T @ r
        n += len(r)
    *products, n = over_all(np.append(total, n)).tolist()
    total, n = np.reshape(products, (3, 3)), int(n)
    if n == 0:
        raise FitError("there are no training atoms, so their residuals have no covariance")
    covariance: NDArray[np.float64] = total / n
    eigenvalues = np.linalg.eigvalsh(covariance)
    if eigenvalues[0] <= _SINGULAR * eigenvalues[-1]:
        raise FitError(
            f"the training residuals of {n} atoms do not span three dimensions (eigenvalues"
            f" {eigenvalues.tolist()}): more training structures are needed"
        )
    return covariance


def cached_residuals(
    reader: FeatureReader, forces: Callable[[NDArray[np.float32]], NDArray[np.float64]]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Yield structures' rows and residuals of a cache's atoms.

    Args:
        reader: the caches.
        forces: node features (n, node_dim) -> forces (n, 3) without what the backbone adds after its head, eV/Å.
    """
    for block in reader.blocks():
        yield block.structure, block.force - block.zbl - forces(block.features)


def save_noise(directory: Path, noise: NDArray[np.float64]) -> None:
    """Write a residual covariance (3, 3) into a fit's directory."""
    from safetensors.numpy import save_file

    with whole_file(directory / _FILE) as temporary:
        save_file({"noise": noise}, temporary, metadata={"forceuq": _SCHEMA})


def load_noise(directory: Path) -> NDArray[np.float64]:
    """Read what ``save_noise`` wrote.

    Raises:
        DataError: the file is missing or damaged.
    """
    noise: NDArray[np.float64] = load_tensors(directory / _FILE, _SCHEMA, ("noise",))["noise"]
    if noise.shape != (3, 3):
        raise DataError(f"holds a covariance of shape {noise.shape}: fit it again", file=directory / _FILE)
    return noise
