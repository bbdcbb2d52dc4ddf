"""Steps of a training on a GPU, recorded once as CUDA graphs and replayed. Imports torch.

A step on a few thousand atoms is some two hundred small operations; to launch them one after the other takes several
times as long as to do them. A recorded step needs tensors of fixed sizes: batches are filled up to a multiple of
``_ROWS`` atoms with rows that the loss leaves out.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forceuq.bll.batches import Pick, Pool

_ROWS = 256
# Losses are looked at after so many steps: to wait for each would leave the GPU idle.
_CHECKED = 256
# Sizes that are recorded, at most: each keeps the memory of its step.
_RECORDED = 48


class BatchLoss(Protocol):
    """The loss of a batch, the mean over its atoms."""

    def __call__(self, x: Tensor, y: Tensor, real: Tensor | None = None) -> Tensor:
        """Return it.

        Args:
            x: (n, d) float32 standardised node features.
            y: (n, 3) float64 targets.
            real: (n, 1) bool, the atoms that count; None: all.
        """


class Step:
    """One step on batches of up to a number of atoms of a pool.

    Args:
        loss: that is minimised, or only computed.
        optimiser: of the step; None: no step is taken.
        pool: that the batches are picked from.
        rows: atoms in a batch, at most.
        record: whether the step is recorded, on a GPU, when it is done the second time.
    """

    def __init__(
        self, loss: BatchLoss, optimiser: torch.optim.Optimizer | None, pool: Pool, rows: int, record: bool
    ) -> None:
        device = pool.x.device
        self._loss, self._optimiser, self._pool, self._record = loss, optimiser, pool, record
        self._atoms = torch.zeros(rows, dtype=torch.int64, device=device)
        self._number = torch.zeros((), dtype=torch.int64, device=device)
        self._row = torch.arange(rows, device=device)
        self._value = torch.zeros((), dtype=torch.float64, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._done = False

    def __call__(self, atoms: NDArray[np.int64]) -> Tensor:
        """Take the step on atoms (n,) of the pool and return the loss before it, () float64, good until the next."""
        filled = np.zeros(len(self._atoms), dtype=np.int64)
        filled[: len(atoms)] = atoms
        self._atoms.copy_(torch.from_numpy(filled), non_blocking=True)
        self._number.fill_(len(atoms))
        if self._record and self._done and self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            if self._optimiser is not None:
                self._optimiser.zero_grad(set_to_none=True)
            with torch.cuda.graph(self._graph):
                self._work()
        if self._graph is not None:
            self._graph.replay()
        else:
            # The first time as it is: libraries and the optimiser make ready what a recording must find.
            self._work()
        self._done = True
        return self._value

    def _work(self) -> None:
        real = (self._row < self._number)[:, None]
        x, y = (values.index_select(0, self._atoms) for values in (self._pool.x, self._pool.y))
        if self._optimiser is None:
            with torch.no_grad():
                loss = self._loss(x, y, real)
        else:
            self._optimiser.zero_grad(set_to_none=True)
            loss = self._loss(x, y, real)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()
        self._value.copy_(loss.detach())


class Replay:
    """Goes through batches, each step recorded for each size of batch and each pool.

    Args:
        loss: of the training.
        optimiser: whose state must stay where it is.
        record: False to do every step as it is.
    """

    def __init__(self, loss: BatchLoss, optimiser: torch.optim.Optimizer, record: bool = True) -> None:
        self._loss, self._optimiser, self._record = loss, optimiser, record
        self._steps: dict[tuple[int, bool, int], Step] = {}

    def mean_loss(self, picks: Iterator[Pick], train: bool, check: Callable[[float, NDArray[np.int64]], None]) -> float:
        """Return the mean loss over all atoms.

        Args:
            picks: the batches.
            train: whether a step is taken on each, after its loss.
            check: is given each loss with the structures (s, 2) that it is of, some steps later, and may raise.
        """
        total, atoms = 0.0, 0
        waiting: list[tuple[int, NDArray[np.int64]]] = []
        losses: Tensor | None = None

        def look() -> float:
            values: list[float] = [] if losses is None else losses[: len(waiting)].tolist()
            for value, (_, structures) in zip(values, waiting, strict=True):
                check(value, structures)
            return sum(value * number for value, (number, _) in zip(values, waiting, strict=True))

        for pick in picks:
            loss = self._step(pick, train)(pick.atoms)
            losses = torch.zeros(_CHECKED, dtype=torch.float64, device=loss.device) if losses is None else losses
            losses[len(waiting)].copy_(loss)
            waiting.append((len(pick.atoms), pick.structures))
            atoms += len(pick.atoms)
            if len(waiting) == _CHECKED:
                total += look()
                waiting.clear()
        return (total + look()) / atoms

    def _step(self, pick: Pick, train: bool) -> Step:
        rows = -(-len(pick.atoms) // _ROWS) * _ROWS
        key = (id(pick.pool), train, rows)
        if key not in self._steps:
            record = self._record and len(self._steps) < _RECORDED
            self._steps[key] = Step(self._loss, self._optimiser if train else None, pick.pool, rows, record)
        return self._steps[key]
