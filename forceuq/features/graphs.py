"""Graphs built beside the model by processes of their own, in batches bounded by atoms and edges."""

import contextlib
import io
import pickle
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

import numpy as np

from forceuq.backbones import BackboneModule, load_backbone_module
from forceuq.data.structures import Structure
from forceuq.processes import result_of, worker_pool

Batch = list[tuple[int, Structure]]


def batches(structures: Iterator[tuple[int, Structure]], max_atoms: int) -> Iterator[Batch]:
    """Yield consecutive structures whose atoms together are at most ``max_atoms`` (or a single structure)."""
    batch: Batch = []
    atoms = 0
    for row, structure in structures:
        if batch and atoms + len(structure) > max_atoms:
            yield batch
            batch, atoms = [], 0
        batch.append((row, structure))
        atoms += len(structure)
    if batch:
        yield batch


def halves(structures: Sequence[Any], atoms: Sequence[int]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return structures (at least two) in two runs of nearly equal numbers of atoms."""
    starts = np.cumsum(atoms)
    middle = int(np.argmin(np.abs(2 * starts[:-1] - starts[-1]))) + 1
    return structures[:middle], structures[middle:]


def build(
    module: BackboneModule, settings: Any, structures: Sequence[Structure], max_edges: int
) -> list[tuple[int, Any]]:
    """Return (number of structures, graph) of consecutive structures: one, or halves where that has too many edges.

    A structure that has too many by itself goes alone. Backbones whose module has no ``edges`` are bounded by
    atoms only.
    """
    graph = module.graphs(structures, settings)
    edges = getattr(module, "edges", None)
    if len(structures) == 1 or edges is None or edges(graph) <= max_edges:
        return [(len(structures), graph)]
    both = halves(structures, [len(structure) for structure in structures])
    return [each for half in both for each in build(module, settings, half, max_edges)]


class _Pickler(pickle.Pickler):
    """Writes tensors as arrays.

    torch's own way, a piece of shared memory for each, costs the process that receives them a system call or several
    a tensor, which on a GPU took longer than the model.
    """

    def reducer_override(self, value: object) -> Any:
        import torch

        if isinstance(value, torch.Tensor) and value.device.type == "cpu" and not value.requires_grad:
            return torch.from_numpy, (value.contiguous().numpy(),)
        return NotImplemented


def _build(kind: str, settings: Any, structures: list[Structure], max_edges: int) -> bytes:
    """Return what ``build`` does, pickled, for another process."""
    import torch

    torch.set_num_threads(1)
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(build(load_backbone_module(kind), settings, structures, max_edges))
    return buffer.getvalue()


class GraphBuilder:
    """Builds the graphs of batches ahead of the model.

    Args:
        kind: of backbone.
        settings: its options.
        max_edges: in a graph, at most (a larger structure goes alone).
        pool: of processes; None: this one builds them when they are asked for.
        ahead: batches that wait, at most.
    """

    def __init__(self, kind: str, settings: Any, max_edges: int, pool: ProcessPoolExecutor | None, ahead: int) -> None:
        self._kind, self._settings, self._max_edges = kind, settings, max_edges
        self._pool, self._ahead = pool, ahead
        self._module = load_backbone_module(kind)

    def of(self, batch: Batch) -> list[tuple[Batch, Any]]:
        """Return a batch with its graph, or the parts of it with theirs, built here and now."""
        return _paired(batch, build(self._module, self._settings, [s for _, s in batch], self._max_edges))

    def all(self, work: Iterator[Batch]) -> Iterator[tuple[Batch, Any]]:
        """Yield batches with their graphs, in order."""
        if self._pool is None:
            for batch in work:
                yield from self.of(batch)
            return
        waiting: deque[tuple[Batch, Future[bytes]]] = deque()
        for batch in work:
            structures = [structure for _, structure in batch]
            waiting.append((batch, self._pool.submit(_build, self._kind, self._settings, structures, self._max_edges)))
            if len(waiting) > self._ahead:
                ready, future = waiting.popleft()
                yield from _paired(ready, pickle.loads(result_of(self._pool, future)))
        while waiting:
            ready, future = waiting.popleft()
            yield from _paired(ready, pickle.loads(result_of(self._pool, future)))


def _paired(batch: Batch, graphs: list[tuple[int, Any]]) -> list[tuple[Batch, Any]]:
    ends = np.cumsum([number for number, _ in graphs]).tolist()
    return [(batch[end - number : end], graph) for end, (number, graph) in zip(ends, graphs, strict=True)]


@contextlib.contextmanager
def graph_builder(kind: str, settings: Any, max_edges: int, workers: int) -> Iterator[GraphBuilder]:
    """Start the processes that build graphs, and wait until they can; none of them for ``workers`` = 0.

    Raises:
        ForceUQError: one of them was ended from outside.
    """
    if workers == 0:
        yield GraphBuilder(kind, settings, max_edges, None, 0)
        return
    with worker_pool(workers) as pool:
        # A molecule of hydrogen: what builds graphs is imported when the first one is built.
        positions = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.74]])
        first = Structure("", "", np.array([1, 1]), positions, np.zeros((3, 3)), False, None, np.zeros((2, 3)), None)
        for ready in [pool.submit(_build, kind, settings, [first], max_edges) for _ in range(workers)]:
            result_of(pool, ready)
        yield GraphBuilder(kind, settings, max_edges, pool, 2 * workers)
