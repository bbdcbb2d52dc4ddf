"""Batches of whole structures from feature caches, shuffled, in bounded memory. Imports torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forceuq.backbones.head import ForceHead
from forceuq.errors import DataError, FitError
from forceuq.features.cache import FeatureBlock, FeatureReader

# Above this, features are read anew every epoch, a pool of this size at a time.
MEMORY_BYTES = 3 * 2**28
_GPU_SHARE = 0.6


def held_bytes(gib: float | None, device: str) -> int:
    """Return how many bytes of features are held.

    Args:
        gib: as many GiB; None: ``MEMORY_BYTES``, or that share of a GPU's memory which leaves room for the rest. It is
            in whole GiB, so that cards of one model agree.
        device: cpu or cuda.
    """
    if gib is not None:
        return int(gib * 2**30)
    if device != "cuda" or not torch.cuda.is_available():
        return MEMORY_BYTES
    return max(MEMORY_BYTES, int(_GPU_SHARE * torch.cuda.get_device_properties(0).total_memory / 2**30) * 2**30)


@dataclass(frozen=True)
class Standardisation:
    """An affine map of the node features to zero mean and unit variance.

    Args:
        mean: (d,) of the training atoms.
        std: (d,); 1 where a feature is constant.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @classmethod
    def of(cls, reader: FeatureReader) -> "Standardisation":
        """Return that of a cache's atoms, in one pass (Chan's update, so that a large mean costs nothing)."""
        mean = np.zeros(reader.metadata.width)
        squares = np.zeros(reader.metadata.width)
        n = 0
        for block in reader.blocks():
            x = block.features.astype(np.float64)
            block_mean = x.mean(axis=0)
            shift = block_mean - mean
            total = n + len(x)
            squares += np.square(x - block_mean).sum(axis=0) + shift**2 * (n * len(x) / total)
            mean += shift * (len(x) / total)
            n = total
        if n == 0:
            raise FitError(f"no atoms in {', '.join(map(str, reader.directories))}")
        std = np.sqrt(squares / n)
        # Below float32's resolution of the mean a variance is rounding.
        constant = std <= 1e-6 * np.abs(mean)
        return cls(mean, np.where(constant | (std == 0.0), 1.0, std))


def check_width(readers: Sequence[FeatureReader], head: ForceHead) -> None:
    """Make sure that a head takes the features of caches.

    Raises:
        DataError: it does not, naming the cache.
    """
    expected = np.shape(head.weights[0][0])[1]
    for reader in readers:
        if reader.metadata.width != expected:
            raise DataError(
                f"holds {reader.metadata.width} features an atom, the head takes {expected}: they are of different"
                " backbones",
                file=reader.directories[0],
            )


@dataclass(frozen=True)
class Batch:
    """Atoms of whole structures.

    Args:
        x: (n, d) float32 standardised node features.
        y: (n, 3) float64 targets: force less what the backbone adds after its head, eV/Å.
        structures: (s, 2) part index and row of each structure, for messages.
    """

    x: Tensor
    y: Tensor
    structures: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of atoms."""
        return len(self.y)


class Pool:
    """Structures held in memory, in tensors made once for as many atoms as there may be.

    Args:
        atoms: at most.
        width: d, of the features.
        standardisation: of the features.
        device: torch's name of where they are held.

    Raises:
        FitError: the device has not the memory for it.
    """

    def __init__(self, atoms: int, width: int, standardisation: Standardisation, device: str = "cpu") -> None:
        self._device = device
        try:
            self.x = torch.empty((atoms, width), dtype=torch.float32, device=device)
            self.y = torch.empty((atoms, 3), dtype=torch.float64, device=device)
        except torch.OutOfMemoryError as error:
            raise FitError(
                f"no memory on the device to hold {atoms} atoms ({error}): set a smaller features_gib"
            ) from error
        self._mean, self._std = (
            torch.as_tensor(value, device=device) for value in (standardisation.mean, standardisation.std)
        )
        self.clear()

    def clear(self) -> None:
        """Forget the structures."""
        self.atoms = 0
        self._sizes: list[NDArray[np.int64]] = []
        self._names: list[NDArray[np.int64]] = []

    def add(self, block: FeatureBlock) -> None:
        """Copy a block, so that nothing keeps its file mapped."""
        part = slice(self.atoms, self.atoms + len(block))
        features, y = (self._moved(value) for value in (block.features, block.force - block.zbl))
        # float32 as the model will see it: the mean is taken off in double precision first.
        self.x[part] = ((features.double() - self._mean) / self._std).float()
        self.y[part] = y
        starts = block.starts
        self._sizes.append(np.diff(starts))
        self._names.append(np.stack([np.full(len(starts) - 1, block.part_index), block.structure[starts[:-1]]], 1))
        self.atoms += len(block)

    def close(self) -> "Pool":
        """Make the pool ready to be chosen from."""
        self.starts = np.concatenate([[0], np.cumsum(np.concatenate(self._sizes))])
        self.structures = np.concatenate(self._names)
        return self

    def _moved(self, values: NDArray[Any]) -> Tensor:
        # torch warns of arrays that cannot be written to, as those of mapped files are.
        return torch.from_numpy(np.require(values, requirements="W")).to(self._device)


@dataclass(frozen=True)
class Pick:
    """The structures of a batch in a pool.

    Args:
        pool: that holds them, until the next pick.
        atoms: (n,) their atoms in it.
        structures: (s, 2) as in ``Batch``.
    """

    pool: Pool
    atoms: NDArray[np.int64]
    structures: NDArray[np.int64]

    def batch(self) -> Batch:
        """Return a copy of the structures."""
        index = torch.from_numpy(self.atoms).to(self.pool.x.device)
        return Batch(self.pool.x[index], self.pool.y[index], self.structures)


class Batches:
    """Batches of at most ``size`` structures, of nearly equal numbers of structures.

    Where everything fits into ``memory_bytes`` it is read once and shuffled as a whole; otherwise an epoch
    reads the row groups in shuffled order and shuffles within pools of that size.

    Args:
        reader: the caches.
        standardisation: of the training features.
        size: structures in a batch, at most.
        memory_bytes: of features held, at most (a batch and one row group come on top).
        device: torch's name of where they are held.
    """

    def __init__(
        self,
        reader: FeatureReader,
        standardisation: Standardisation,
        size: int,
        memory_bytes: int = MEMORY_BYTES,
        device: str = "cpu",
    ) -> None:
        if reader.n_structures == 0:
            raise FitError(f"no structures in {', '.join(map(str, reader.directories))}")
        self._reader = reader
        self._standardisation = standardisation
        self._size = size
        # A pool holds one row group at least, and no more than there is.
        held = max(memory_bytes // (4 * reader.metadata.width + 24), reader.largest_row_group)
        self._pool_atoms = min(held, reader.n_atoms)
        self._device = device
        self._pool: Pool | None = None

    def epoch(self, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield every structure once, in an order that ``seed`` and ``epoch`` determine."""
        return (pick.batch() for pick in self.picks(seed, epoch))

    def in_order(self) -> Iterator[Batch]:
        """Yield every structure once, in the caches' order."""
        return (pick.batch() for pick in self.picks_in_order())

    def picks(self, seed: int, epoch: int) -> Iterator[Pick]:
        """Yield what ``epoch`` does, uncopied: each good until the next is asked for."""
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(self._reader.n_row_groups) if not self._fits else None
        for pool in self._pools(order):
            yield from self._split(pool, rng.permutation(len(pool.structures)))

    def picks_in_order(self) -> Iterator[Pick]:
        """Yield what ``in_order`` does, likewise."""
        for pool in self._pools(None):
            yield from self._split(pool, np.arange(len(pool.structures)))

    @property
    def _fits(self) -> bool:
        return self._reader.n_atoms <= self._pool_atoms

    def _split(self, pool: Pool, order: NDArray[np.int64]) -> Iterator[Pick]:
        # Equal shares rather than a remnant: the evidence of a handful of atoms is a poor gradient.
        for chosen in np.array_split(order, -(-len(order) // self._size)):
            atoms = np.concatenate([np.arange(pool.starts[i], pool.starts[i + 1]) for i in chosen])
            yield Pick(pool, atoms, pool.structures[chosen])

    def _pools(self, order: NDArray[np.int64] | None) -> Iterator[Pool]:
        if self._pool is None:
            self._pool = Pool(self._pool_atoms, self._reader.metadata.width, self._standardisation, self._device)
        elif self._fits:
            yield self._pool
            return
        pool = self._pool
        pool.clear()
        for block in self._reader.blocks(order=None if order is None else [int(i) for i in order]):
            if pool.atoms + len(block) > self._pool_atoms:
                yield pool.close()
                pool.clear()
            pool.add(block)
        yield pool.close()
