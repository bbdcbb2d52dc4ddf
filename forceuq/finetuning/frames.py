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
class Share:
    """What one process takes of a batch that several processes compute together.

    Args:
        structure_ids: of the whole batch.
        mine: positions of this process's structures among them, rising.
        atoms: of each structure of the whole batch.
        edges: likewise; empty until the processes have told each other.
        counted: False where there were fewer structures than processes and this one takes the first structure
            only to stay in step: as many random numbers drawn, as many sums, but a weight of zero.
    """

    structure_ids: tuple[str, ...]
    mine: tuple[int, ...]
    atoms: tuple[int, ...]
    edges: tuple[int, ...] = ()
    counted: bool = True

    def fraction(self, sizes: Sequence[int]) -> float:
        """Return this process's part of the sum of ``sizes``, which are ``atoms`` or ``edges``."""
        whole = sum(sizes)
        return sum(sizes[i] for i in self.mine) / whole if self.counted and whole else 0.0


@dataclass(frozen=True)
class Batch:
    """Frames in one graph.

    Args:
        graph: of all, with ``n_node`` and ``n_edge`` (s,).
        target: (n, 3) float32, eV/Å.
        structure_ids: in their order.
        sizes: atoms of each.
        share: where this is a process's part of a batch; None: it is all of it.
    """

    graph: Any
    target: Tensor
    structure_ids: tuple[str, ...]
    sizes: tuple[int, ...]
    share: Share | None = None

    @property
    def of_atoms(self) -> float:
        """The part of the whole batch's atoms that are here: 1 unless the batch is shared."""
        return 1.0 if self.share is None else self.share.fraction(self.share.atoms)

    @property
    def of_edges(self) -> float:
        """The part of the whole batch's edges that are here, likewise."""
        return 1.0 if self.share is None else self.share.fraction(self.share.edges)


def share_out(sizes: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """Return the positions of the structures that each process takes of a batch: those with most atoms first, each to
    the process that has fewest atoms so far, the lower rank where two have the same.

    Args:
        sizes: atoms of each structure.
        count: of processes.
    """
    loads = [0] * count
    taken: list[list[int]] = [[] for _ in range(count)]
    for position in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        rank = loads.index(min(loads))
        loads[rank] += sizes[position]
        taken[rank].append(position)
    return [tuple(sorted(positions)) for positions in taken]


class Frames:
    """The structures of some parts.

    Where all atoms are at most ``max_atoms``, each graph is kept once it is built; otherwise an epoch reads
    stretches of the parts in shuffled order, shuffles within pools of at most that many atoms, and builds graphs anew.
    Of several processes that share each batch, each builds the graphs of its own structures only.

    Args:
        parts: where the structures lie.
        build: structures -> one batch of graphs on the CPU.
        collate: graphs -> one batch of them.
        zbl: batch -> (n, 3) eV/Å, what the backbone adds after its head.
        batch_structures: structures in a batch, at most.
        max_atoms: whose graphs are kept, or structures held, at most (one stretch of 100 comes on top).

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
        self._whole: list[_Entry] | None = None

    def digests(self) -> list[str]:
        """Return what identifies the structures: digests of the files, and the parts' names."""
        return [
            text for part in self._parts for text in (file_digest(part.structures), file_digest(part.splits), part.name)
        ]

    def epoch(self, seed: int, epoch: int, rank: int = 0, processes: int = 1) -> Iterator[Batch]:
        """Yield every structure once, in an order that ``seed`` and ``epoch`` determine.

        Args:
            seed: of the order.
            epoch: likewise.
            rank: of this process.
            processes: that share each batch. The batches are the same whatever their number.
        """
        rng = np.random.default_rng([seed, epoch])
        for pool in self._pools(rng.permutation(len(self._chunks))):
            yield from self._batches(pool, rng.permutation(len(pool)), rank, processes)

    def in_order(self, rank: int = 0, processes: int = 1) -> Iterator[Batch]:
        """Yield every structure once, in the parts' order; of several processes each has its share."""
        for pool in self._pools(np.arange(len(self._chunks))):
            yield from self._batches(pool, np.arange(len(pool)), rank, processes)

    def _batches(
        self, pool: Sequence["_Entry"], order: NDArray[np.int64], rank: int, processes: int
    ) -> Iterator[Batch]:
        for start in range(0, len(order), self._batch_structures):
            entries = [pool[i] for i in order[start : start + self._batch_structures]]
            share = None
            if processes > 1:
                share = _share(entries, rank, processes)
                entries = [entries[i] for i in share.mine]
            frames = [entry.frame(self._frame) for entry in entries]
            yield Batch(
                self._collate([frame.graph for frame in frames]),
                torch.cat([frame.target for frame in frames]),
                tuple(frame.structure_id for frame in frames),
                tuple(len(frame.target) for frame in frames),
                share,
            )

    def _pools(self, order: NDArray[np.int64]) -> Iterator[list["_Entry"]]:
        if self.n_atoms <= self._max_atoms:
            if self._whole is None:
                self._whole = [
                    _Entry(structure, keep=True)
                    for index in range(len(self._chunks))
                    for structure in self._structures(index)
                ]
            yield self._whole
            return
        pool: list[_Entry] = []
        atoms = 0
        for index in order.tolist():
            if pool and atoms + self._chunks[index][2] > self._max_atoms:
                yield pool
                pool, atoms = [], 0
            pool += [_Entry(structure, keep=False) for structure in self._structures(index)]
            atoms += self._chunks[index][2]
        if pool:
            yield pool

    def _structures(self, index: int) -> Iterator[Structure]:
        part, rows, _ = self._chunks[index]
        for _, structure in read_structures(part.structures, rows):
            yield structure

    def _frame(self, structure: Structure) -> Frame:
        graph = self._build([structure])
        with torch.no_grad():
            target = torch.from_numpy(structure.forces) - self._zbl(graph).double().cpu()
        return Frame(structure.structure_id, graph, target.float())


class _Entry:
    """A structure of a pool, and its frame once it was asked for."""

    def __init__(self, structure: Structure, keep: bool) -> None:
        self.structure_id = structure.structure_id
        self.size = len(structure)
        self._keep = keep
        self._found: Structure | Frame = structure

    def frame(self, build: Callable[[Structure], Frame]) -> Frame:
        frame = self._found if isinstance(self._found, Frame) else build(self._found)
        if self._keep:
            self._found = frame
        return frame


def _share(entries: Sequence[_Entry], rank: int, processes: int) -> Share:
    sizes = tuple(entry.size for entry in entries)
    mine = share_out(sizes, processes)[rank]
    return Share(tuple(entry.structure_id for entry in entries), mine or (0,), sizes, counted=bool(mine))
