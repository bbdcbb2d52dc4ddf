"""Structures with their graphs and targets, in shuffled batches and bounded memory. Imports torch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forceuq.data.splits import read_part
from forceuq.data.structures import Structure, read_columns, read_structures
from forceuq.errors import FitError
from forceuq.files import file_digest
from forceuq.methods import StructurePart

# About 1 GB of graphs of 20 neighbours an atom; above this, graphs are built anew every epoch.
MAX_ATOMS = 500_000
# Consecutive structures that are read together where not all fit.
_CHUNK = 100


@dataclass(frozen=True)
class Frame:
    """A structure, its graph on the CPU, and the force that the head must give.

    Args:
        structure_id: for messages.
        graph: as the backbone's module makes it.
        target: (n, 3) float32, force without what the backbone adds after its head (ZBL), eV/Å.
    """

    structure_id: str
    graph: Any
    target: Tensor


@dataclass(frozen=True)
class Batch:
    """Frames in one graph; ``target`` is (n, 3), ``structure_ids`` and ``sizes`` (atoms) in their order."""

    graph: Any
    target: Tensor
    structure_ids: tuple[str, ...]
    sizes: tuple[int, ...]


class Frames:
    """The structures of some parts.

    Where all atoms are at most ``max_atoms``, each graph is built once and kept; otherwise an epoch reads
    stretches of the parts in shuffled order and shuffles within pools of at most that many atoms.

    Args:
        parts: where the structures lie.
        build: structures -> one batch of graphs on the CPU.
        collate: graphs -> one batch of them.
        zbl: batch -> (n, 3) eV/Å, what the backbone adds after its head.
        batch_structures: structures in a batch, at most.
        max_atoms: whose graphs are kept, at most (one stretch of 100 structures comes on top).

    Raises:
        DataError: a part that cannot be read, or has no structures.
        FitError: there are no parts.
    """

    def __init__(
        self,
        parts: Sequence[StructurePart],
        build: Callable[[Sequence[Structure]], Any],
        collate: Callable[[Sequence[Any]], Any],
        zbl: Callable[[Any], Tensor],
        batch_structures: int,
        max_atoms: int = MAX_ATOMS,
    ) -> None:
        if not parts:
            raise FitError("no parts with structures to train on or to validate with: this method needs structures")
        self._parts = tuple(parts)
        self._build, self._collate, self._zbl = build, collate, zbl
        self._batch_structures = batch_structures
        self._max_atoms = max_atoms
        self._chunks: list[tuple[StructurePart, NDArray[np.int64], int]] = []
        self.n_structures = 0
        self.n_atoms = 0
        for part in self._parts:
            rows = read_part(part.splits, part.name)
            numbers = read_columns(part.structures, ["numbers"]).column("numbers").combine_chunks()
            atoms = np.diff(numbers.offsets.to_numpy())[rows]
            for start in range(0, len(rows), _CHUNK):
                stretch = slice(start, start + _CHUNK)
                self._chunks.append((part, rows[stretch], int(atoms[stretch].sum())))
            self.n_structures += len(rows)
            self.n_atoms += int(atoms.sum())
        if not self.n_structures:
            raise FitError(f"no structures in parts {', '.join(part.name for part in parts)}")
        self._whole: list[Frame] | None = None

    def digests(self) -> list[str]:
        """Return what identifies the structures: digests of the files, and the parts' names."""
        return [
            text for part in self._parts for text in (file_digest(part.structures), file_digest(part.splits), part.name)
        ]

    def epoch(self, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield every structure once, in an order that ``seed`` and ``epoch`` determine."""
        rng = np.random.default_rng([seed, epoch])
        for pool in self._pools(rng.permutation(len(self._chunks))):
            yield from self._batches(pool, rng.permutation(len(pool)))

    def in_order(self) -> Iterator[Batch]:
        """Yield every structure once, in the parts' order."""
        for pool in self._pools(np.arange(len(self._chunks))):
            yield from self._batches(pool, np.arange(len(pool)))

    def _batches(self, pool: Sequence[Frame], order: NDArray[np.int64]) -> Iterator[Batch]:
        for start in range(0, len(order), self._batch_structures):
            frames = [pool[i] for i in order[start : start + self._batch_structures]]
            yield Batch(
                self._collate([frame.graph for frame in frames]),
                torch.cat([frame.target for frame in frames]),
                tuple(frame.structure_id for frame in frames),
                tuple(len(frame.target) for frame in frames),
            )

    def _pools(self, order: NDArray[np.int64]) -> Iterator[list[Frame]]:
        if self.n_atoms <= self._max_atoms:
            if self._whole is None:
                self._whole = [frame for index in range(len(self._chunks)) for frame in self._frames(index)]
            yield self._whole
            return
        pool: list[Frame] = []
        atoms = 0
        for index in order.tolist():
            if pool and atoms + self._chunks[index][2] > self._max_atoms:
                yield pool
                pool, atoms = [], 0
            pool += self._frames(index)
            atoms += self._chunks[index][2]
        if pool:
            yield pool

    def _frames(self, index: int) -> Iterator[Frame]:
        part, rows, _ = self._chunks[index]
        for _, structure in read_structures(part.structures, rows):
            graph = self._build([structure])
            with torch.no_grad():
                target = torch.from_numpy(structure.forces) - self._zbl(graph).double().cpu()
            yield Frame(structure.structure_id, graph, target.float())
