"""The backbone's pass over batches of structures: on a GPU without waiting, in as much memory as there is."""

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forceuq.backbones import Backbone
from forceuq.errors import DataError
from forceuq.features.graphs import Batch, GraphBuilder, halves

_LOGGER = logging.getLogger(__name__)
Passed = tuple[Batch, NDArray[np.float32], NDArray[np.float64]]


@dataclass
class Extraction:
    """What making a cache was like.

    Args:
        device: that the model ran on.
        max_atoms: atoms in a pass, at most; in the end, where the device's memory did not do for more.
        atoms: in the cache.
        seconds: that they took once model and graph builders were ready.
        reading: seconds of reading structures.
        graphs: seconds of waiting for graphs; of building them, without processes that do.
        model: seconds in the model, and of waiting for what it gives.
        writing: seconds of waiting for what is written beside the model.
        out_of_memory: how often the device's memory did not do for a pass. It was halved then, as were those after
            it: other sums of the same products, so features that differ by rounding.
    """

    device: str
    max_atoms: int
    atoms: int = 0
    seconds: float = 0.0
    reading: float = 0.0
    graphs: float = 0.0
    model: float = 0.0
    writing: float = 0.0
    out_of_memory: int = 0

    @property
    def bottleneck(self) -> str:
        """Which stage took longest."""
        return max(("reading", "graphs", "model", "writing"), key=lambda stage: float(getattr(self, stage)))

    def record(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {**asdict(self), "bottleneck": self.bottleneck}


class Forward:
    """Runs a backbone over batches.

    Args:
        backbone: the model.
        builder: of its graphs.
        device: that the model is on.
        done: where time and halved passes are noted.
    """

    def __init__(self, backbone: Backbone, builder: GraphBuilder, device: str, done: Extraction) -> None:
        import torch

        self._backbone, self._builder, self._device, self._done = backbone, builder, device, done
        self._beside: Any = torch.cuda.Stream() if device == "cuda" else None  # type: ignore[no-untyped-call]

    def all(self, work: Iterator[Batch]) -> Iterator[Passed]:
        """Yield batches, or halves of them, with node features (n, D) and ZBL forces (n, 3), in order.

        A GPU is given the next batch before the results of one are waited for and yielded.

        Raises:
            DataError: a structure that alone does not fit into the device's memory.
        """
        from forceuq.features.transfer import Arriving

        before: tuple[Batch, Arriving] | None = None
        for batch, graph in self._graphs(work):
            for piece, tensors in self._pass(batch, graph):
                arriving = Arriving(*tensors)
                if before is not None:
                    yield self._arrived(*before)
                before = piece, arriving
        if before is not None:
            yield self._arrived(*before)

    def _graphs(self, work: Iterator[Batch]) -> Iterator[tuple[Batch, Any]]:
        graphs = self._builder.all(work)
        while True:
            began, reading = time.perf_counter(), self._done.reading
            pair = next(graphs, None)
            # Structures are read when their graphs are asked for; that time has its own name.
            self._done.graphs += time.perf_counter() - began - (self._done.reading - reading)
            if pair is None:
                return
            yield pair

    def _pass(self, batch: Batch, graph: Any) -> Iterator[tuple[Batch, tuple[Any, ...]]]:
        import torch

        atoms = [len(structure) for _, structure in batch]
        # Batches that were on their way when memory did not do are halved without another try.
        if len(batch) == 1 or sum(atoms) <= self._done.max_atoms:
            began = time.perf_counter()
            try:
                tensors = self._run(graph)
            except torch.OutOfMemoryError as error:
                self._shrink(batch, sum(atoms), error)
            else:
                self._done.model += time.perf_counter() - began
                yield batch, tensors
                return
            torch.cuda.empty_cache()
        for half in halves(batch, atoms):
            began = time.perf_counter()
            built = self._builder.of(list(half))
            self._done.graphs += time.perf_counter() - began
            for piece, again in built:
                yield from self._pass(piece, again)

    def _run(self, graph: Any) -> tuple[Any, ...]:
        # A frame of its own: what it holds on the device is free when the exception has been dealt with.
        import torch

        from forceuq.features.transfer import tensors_of, to_device

        if self._beside is None:
            moved = to_device(graph, self._device)
            return self._backbone.node_features(moved).float(), self._backbone.zbl(moved).double()
        # Orb's repulsion waits for the GPU, for a number of rows: on a stream of its own it does not wait for passes
        # that are on their way.
        main = torch.cuda.current_stream()
        with torch.cuda.stream(self._beside):
            moved = to_device(graph, self._device)
            zbl = self._backbone.zbl(moved).double()
        main.wait_stream(self._beside)
        # Their memory is not for others of that stream until the pass is over.
        for tensor in tensors_of([moved, zbl]):
            tensor.record_stream(main)
        return self._backbone.node_features(moved).float(), zbl

    def _shrink(self, batch: Batch, atoms: int, error: Exception) -> None:
        if len(batch) == 1:
            raise DataError(
                f"its {atoms} atoms do not fit into the device's memory ({error}): use another device",
                record=batch[0][1].structure_id,
            ) from error
        self._done.out_of_memory += 1
        self._done.max_atoms = max(1, min(self._done.max_atoms, atoms) // 2)
        _LOGGER.warning(
            "out of memory with %d atoms in a pass: going on with at most %d (features.max_atoms_per_batch)",
            *(atoms, self._done.max_atoms),
        )

    def _arrived(self, batch: Batch, arriving: Any) -> Passed:
        began = time.perf_counter()
        features, zbl = arriving.wait()
        self._done.model += time.perf_counter() - began
        return batch, features.numpy(), zbl.numpy()
