"""Stationary kernels of the distance between features, with their derivative. Imports torch."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

KernelName = Literal["rbf", "matern52"]
# Rows of a kernel matrix that are computed at a time: what is needed beside the matrix stays small.
_ROWS = 1024
# Rows and columns of a tile that is used and thrown away: on a processor it stays in the cache.
_TILE_ROWS = {"cpu": 256}


@dataclass(frozen=True)
class Hyperparameters:
    """Of a Gaussian process with one kernel for all outputs, in units of the scaled targets.

    Args:
        lengthscale: in units of the standardised features.
        outputscale: variance of the function.
        noise: variance of the noise.
    """

    lengthscale: float
    outputscale: float
    noise: float


def _rbf(q: Tensor) -> Tensor:
    return torch.exp(-0.5 * q)


def _rbf_slope(q: Tensor) -> Tensor:
    return q * torch.exp(-0.5 * q)


def _matern52(q: Tensor) -> Tensor:
    r = torch.sqrt(5.0 * q)
    return (1.0 + r + 5.0 / 3.0 * q) * torch.exp(-r)


def _matern52_slope(q: Tensor) -> Tensor:
    r = torch.sqrt(5.0 * q)
    return 5.0 / 3.0 * q * (1.0 + r) * torch.exp(-r)


# By name: the correlation as a function of q = (distance / lengthscale)², and its derivative with respect to the
# logarithm of the lengthscale (Rasmussen & Williams 2006, eqs. 4.9 and 4.17).
_KERNELS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "rbf": (_rbf, _rbf_slope),
    "matern52": (_matern52, _matern52_slope),
}


def covariance(kernel: KernelName, x: Tensor, y: Tensor, parameters: Hyperparameters) -> Tensor:
    """Return the covariances (n, m) of the function at x (n, D) and y (m, D), float64."""
    out = torch.empty((len(x), len(y)), dtype=torch.float64, device=x.device)
    for start in range(0, len(x), _ROWS):
        rows = x[start : start + _ROWS]
        q = _squared_distances(rows, y) / parameters.lengthscale**2
        if x is y:
            # Rounding would make an input differ from itself.
            q[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = 0.0
        out[start : start + _ROWS] = parameters.outputscale * _KERNELS[kernel][0](q)
    return out


def slope_product(kernel: KernelName, x: Tensor, weights: Tensor, parameters: Hyperparameters) -> float:
    """Return the sum over all pairs of weights (n, n) times the covariance's derivative by log lengthscale."""
    total = 0.0
    for start in range(0, len(x), _ROWS):
        q = _squared_distances(x[start : start + _ROWS], x) / parameters.lengthscale**2
        slope = parameters.outputscale * _KERNELS[kernel][1](q)
        total += float((weights[start : start + _ROWS] * slope).sum())
    return total


def product(kernel: KernelName, x: Tensor, vectors: Tensor, parameters: Hyperparameters) -> Tensor:
    """Return the covariances of the function at x (n, D) times vectors (n, T), of which no more than a tile is kept."""
    out = torch.zeros_like(vectors)
    for here, there, q in _tiles(x / parameters.lengthscale):
        tile = _KERNELS[kernel][0](q)
        out[here].addmm_(tile, vectors[there])
        if here != there:
            out[there].addmm_(tile.T, vectors[here])
    return out.mul_(parameters.outputscale)


def slope_forms(kernel: KernelName, x: Tensor, left: Tensor, right: Tensor, parameters: Hyperparameters) -> Tensor:
    """Return left^T S right of each pair of columns (T,); S is the covariances' derivative by log lengthscale.

    Args:
        kernel: of the function.
        x: (n, D) inputs.
        left: (n, T).
        right: (n, T).
        parameters: at which.
    """
    out = torch.zeros(left.shape[1], dtype=torch.float64, device=x.device)
    for here, there, q in _tiles(x / parameters.lengthscale):
        tile = _KERNELS[kernel][1](q)
        out += (left[here] * (tile @ right[there])).sum(0)
        if here != there:
            out += (left[there] * (tile.T @ right[here])).sum(0)
    return out.mul_(parameters.outputscale)


def slopes(kernel: KernelName, x: Tensor, y: Tensor, parameters: Hyperparameters) -> Tensor:
    """Return the derivatives (n, m) by log lengthscale of the covariances at x (n, D) and y (m, D)."""
    q = _squared_distances(x / parameters.lengthscale, y / parameters.lengthscale)
    return _KERNELS[kernel][1](q).mul_(parameters.outputscale)


def _tiles(scaled: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield the squared distances of the tiles on and above the diagonal: those below are their transposes."""
    size = _TILE_ROWS.get(scaled.device.type, _ROWS)
    for i in range(0, len(scaled), size):
        for j in range(i, len(scaled), size):
            q = _squared_distances(scaled[i : i + size], scaled[j : j + size])
            if i == j:
                q.fill_diagonal_(0.0)
            yield slice(i, i + size), slice(j, j + size), q


def median_distance(x: Tensor) -> float:
    """Return the median distance between inputs (n, D); one if they are all the same."""
    q = _squared_distances(x, x)
    above = q[torch.triu(torch.ones_like(q, dtype=torch.bool), diagonal=1)]
    median = math.sqrt(float(above.median())) if len(above) else 0.0
    return median or 1.0


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    squares = (x * x).sum(1)[:, None] + (y * y).sum(1)[None, :]
    return torch.addmm(squares, x, y.T, alpha=-2.0).clamp_(min=0.0)
