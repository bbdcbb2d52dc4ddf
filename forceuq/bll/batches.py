"""Batches of whole structures from feature caches, shuffled, in bounded memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forceuq.backbones.head import ForceHead
from forceuq.errors import DataError, FitError
from forceuq.features.cache import FeatureBlock, FeatureReader

# Above this, features are read anew every epoch, a pool of this size at a time.
MEMORY_BYTES = 3 * 2**28


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

    x: NDArray[np.float32]
    y: NDArray[np.float64]
    structures: NDArray[np.int64]


class _Pool:
    """Structures held in memory, in arrays made once for as many atoms as there may be."""

    def __init__(self, atoms: int, width: int, standardisation: Standardisation) -> None:
        self._standardisation = standardisation
        self.x = np.empty((atoms, width), dtype=np.float32)
        self.y = np.empty((atoms, 3))
        self.clear()

    def clear(self) -> None:
        self.atoms = 0
        self._sizes: list[NDArray[np.int64]] = []
        self._names: list[NDArray[np.int64]] = []

    def add(self, block: FeatureBlock) -> None:
        """Copy a block, so that nothing keeps its file mapped."""
        part = slice(self.atoms, self.atoms + len(block))
        # float32 as the model will see it: the mean is taken off in double precision first.
        self.x[part] = (block.features - self._standardisation.mean) / self._standardisation.std
        self.y[part] = block.force - block.zbl
        starts = block.starts
        self._sizes.append(np.diff(starts))
        self._names.append(np.stack([np.full(len(starts) - 1, block.part_index), block.structure[starts[:-1]]], 1))
        self.atoms += len(block)

    def close(self) -> "_Pool":
        """Make the pool ready for ``batch``."""
        self.starts = np.concatenate([[0], np.cumsum(np.concatenate(self._sizes))])
        self.structures = np.concatenate(self._names)
        return self

    def batch(self, chosen: NDArray[np.int64]) -> Batch:
        atoms = np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in chosen])
        return Batch(self.x[atoms], self.y[atoms], self.structures[chosen])


class Batches:
    """Batches of at most ``size`` structures, of nearly equal numbers of structures.

    Where everything fits into ``memory_bytes`` it is read once and shuffled as a whole; otherwise an epoch
    reads the row groups in shuffled order and shuffles within pools of that size.

    Args:
        reader: the caches.
        standardisation: of the training features.
        size: structures in a batch, at most.
        memory_bytes: of features held, at most (a batch and one row group come on top).
    """

    def __init__(
        self,
        reader: FeatureReader,
        standardisation: Standardisation,
        size: int,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        if reader.n_structures == 0:
            raise FitError(f"no structures in {', '.join(map(str, reader.directories))}")
        self._reader = reader
        self._standardisation = standardisation
        self._size = size
        # A pool holds one row group at least, and no more than there is.
        held = max(memory_bytes // (4 * reader.metadata.width + 24), reader.largest_row_group)
        self._pool_atoms = min(held, reader.n_atoms)
        self._whole: _Pool | None = None

    def epoch(self, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield every structure once, in an order that ``seed`` and ``epoch`` determine."""
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(self._reader.n_row_groups) if not self._fits else None
        for pool in self._pools(order):
            yield from self._split(pool, rng.permutation(len(pool.structures)))

    def in_order(self) -> Iterator[Batch]:
        """Yield every structure once, in the caches' order."""
        for pool in self._pools(None):
            yield from self._split(pool, np.arange(len(pool.structures)))

    @property
    def _fits(self) -> bool:
        return self._reader.n_atoms <= self._pool_atoms

    def _split(self, pool: _Pool, order: NDArray[np.int64]) -> Iterator[Batch]:
        # Equal shares rather than a remnant: the evidence of a handful of atoms is a poor gradient.
        for chosen in np.array_split(order, -(-len(order) // self._size)):
            yield pool.batch(chosen)

    def _pools(self, order: NDArray[np.int64] | None) -> Iterator[_Pool]:
        if self._fits and self._whole is not None:
            yield self._whole
            return
        pool = _Pool(self._pool_atoms, self._reader.metadata.width, self._standardisation)
        for block in self._reader.blocks(order=None if order is None else [int(i) for i in order]):
            if pool.atoms + len(block) > self._pool_atoms:
                yield pool.close()
                pool.clear()
            pool.add(block)
        if self._fits:
            self._whole = pool
        yield pool.close()
