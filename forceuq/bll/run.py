"""Training of tensors on batches of cached features: early stopping, checkpoints, resumption. Imports torch."""

import hashlib
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from forceuq.backbones.head import ForceHead
from forceuq.bll.batches import Batch, Batches
from forceuq.bll.replay import BatchLoss, Replay
from forceuq.errors import DataError, FitError
from forceuq.features.cache import FeatureReader
from forceuq.files import whole_file

_LOGGER = logging.getLogger(__name__)


class Observer(Protocol):
    """What looks at the tensors at the end of every epoch; its state goes into the checkpoints."""

    def observe(self, tensors: Mapping[str, Tensor]) -> None:
        """Take in the tensors of an epoch's end."""

    def state(self) -> dict[str, Tensor]:
        """Return everything that ``observe`` changes."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up what ``state`` returned."""


class Run:
    """A training's state: everything that a checkpoint holds.

    Args:
        name: of what is minimised, for messages.
        tensors: what is trained, by name.
        loss: of a batch, the mean over its atoms; on the tensors' device.
        learning_rate: of Adam.
        patience: epochs without a lower validation loss after which training stops; None: it does not.
        max_epochs: after which it stops in any case.
        key: digest of everything that the result depends on; a checkpoint with another key is not used.
        observer: looks at the tensors after every epoch.
        first_epoch: added to an epoch's number where that shuffles the structures, so that a second stage does
            not see them in the orders of the first.
    """

    def __init__(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        loss: BatchLoss,
        *,
        learning_rate: float,
        patience: int | None,
        max_epochs: int,
        key: str,
        observer: Observer | None = None,
        first_epoch: int = 0,
    ) -> None:
        self.name = name
        self.tensors = dict(tensors)
        self.loss = loss
        self.learning_rate = learning_rate
        self.patience = patience
        self.max_epochs = max_epochs
        self.key = key
        self.observer = observer
        self.first_epoch = first_epoch
        # On a GPU, steps are recorded and replayed: launching a small model's operations one by one takes longer.
        recorded = any(tensor.is_cuda for tensor in self.tensors.values())
        self.optimiser = torch.optim.Adam(
            list(self.tensors.values()), lr=learning_rate, fused=recorded or None, capturable=recorded
        )
        self.replay = Replay(loss, self.optimiser) if recorded else None
        self.epoch = 0
        self.best_epoch = 0
        self.best_loss = math.inf
        self.best = self._values()
        self.best_adam: dict[str, Tensor] = {}
        self.trace: list[tuple[float | None, float]] = []
        self.seconds = 0.0

    def _values(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Give the tensors these values."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(values[name])

    def adam(self) -> dict[str, Tensor]:
        """Return a copy of Adam's state, by tensor and quantity; empty before the first step."""
        return {
            f"{name}.{quantity}": value.detach().clone()
            for name, tensor in self.tensors.items()
            for quantity, value in self.optimiser.state.get(tensor, {}).items()
        }

    def restore_adam(self, state: Mapping[str, Tensor]) -> None:
        """Give Adam a state that ``adam`` returned."""
        by_tensor: list[dict[str, Tensor]] = [{} for _ in self.tensors]
        index = {name: i for i, name in enumerate(self.tensors)}
        for key, value in state.items():
            name, _, quantity = key.rpartition(".")
            by_tensor[index[name]][quantity] = value.clone()
        groups = self.optimiser.state_dict()["param_groups"]
        states = {i: each for i, each in enumerate(by_tensor) if each}
        self._restore_optimiser({"state": states, "param_groups": groups})

    def _restore_optimiser(self, state: dict[str, Any]) -> None:
        self.optimiser.load_state_dict(state)
        if self.replay is not None:  # it has recorded where the state was
            self.replay = Replay(self.loss, self.optimiser)

    def record(self, training: float | None, validation: float) -> None:
        """Note the losses of the epoch that has ended."""
        self.trace.append((training, validation))
        if validation < self.best_loss:
            self.best_loss, self.best_epoch, self.best = validation, self.epoch, self._values()
            self.best_adam = self.adam()

    @property
    def stopped(self) -> str | None:
        """Why training is over: ``patience`` or ``max_epochs``; None while it is not."""
        if self.patience is not None and self.epoch - self.best_epoch >= self.patience:
            return "patience"
        return "max_epochs" if self.epoch >= self.max_epochs else None

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        state = {
            "key": self.key,
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "trace": self.trace,
            "seconds": self.seconds,
            "values": self._values(),
            "best": self.best,
            "best_adam": self.best_adam,
            "optimiser": self.optimiser.state_dict(),
            "observer": {} if self.observer is None else self.observer.state(),
        }
        with whole_file(path) as temporary:
            torch.save(state, temporary)

    def resume(self, path: Path) -> bool:
        """Take up the state of a checkpoint of this same training; one of another is left alone.

        Raises:
            DataError: the file is not a checkpoint.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return False
        except Exception as error:  # what torch raises on damaged files has no common class
            raise DataError(f"not a checkpoint ({error}): remove it", file=path) from error
        if state["key"] != self.key:
            _LOGGER.info("%s is of another training: starting anew", path)
            return False
        self.restore(state["values"])
        self.best = {name: value.to(self.tensors[name].device) for name, value in state["best"].items()}
        self.best_adam = state["best_adam"]
        self._restore_optimiser(state["optimiser"])
        if self.observer is not None:
            self.observer.restore(state["observer"])
        self.epoch, self.best_epoch = state["epoch"], state["best_epoch"]
        self.best_loss, self.seconds = state["best_loss"], state["seconds"]
        self.trace = [(entry[0], entry[1]) for entry in state["trace"]]
        _LOGGER.info("resuming after epoch %d", self.epoch)
        return True


def training_key(settings: object, seed: int, head: ForceHead, readers: Sequence[FeatureReader]) -> str:
    """Return the digest of everything that a result depends on, so that no checkpoint of other data is taken up.

    Args:
        settings: whose ``repr`` tells them.
        seed: of the training.
        head: where it starts from.
        readers: training and validation caches.
    """
    digest = hashlib.sha256(json.dumps([repr(settings), seed], sort_keys=True).encode())
    for array in (*(x for layer in head.weights for x in layer), head.out_weight, head.out_bias, head.mean, head.std):
        digest.update(np.ascontiguousarray(array).tobytes())
    for reader in readers:
        digest.update(reader.digest().encode())
    return digest.hexdigest()


def train_epochs(run: Run, batches: Batches, held_out: Batches, seed: int, checkpoint: Path) -> None:
    """Train by Adam until the run stops; the tensors end as the last epoch left them.

    Args:
        run: what is trained and how; ``run.best`` and ``run.best_adam`` then hold the best epoch's values and
            Adam's state with them.
        batches: of the training structures.
        held_out: of the validation structures.
        seed: of the order of structures.
        checkpoint: file that is written every epoch and taken up if it is there.

    Raises:
        FitError: a loss that is not finite, naming epoch and structures.
        DataError: a cache or a checkpoint that is damaged.
    """
    if not run.resume(checkpoint):
        run.record(None, _validation_loss(run, held_out))
    with tqdm(total=run.max_epochs, initial=run.epoch, desc=run.name, unit="epoch", mininterval=5) as bar:
        while run.stopped is None:
            began = time.perf_counter()
            run.epoch += 1
            training = train_epoch(run, batches, seed)
            run.record(training, _validation_loss(run, held_out))
            if run.observer is not None:
                run.observer.observe(run.tensors)
            run.seconds += time.perf_counter() - began
            run.save(checkpoint)
            bar.update()
            bar.set_postfix(validation=f"{run.trace[-1][1]:.4f}", best=run.best_epoch, refresh=False)
    _LOGGER.info("%s: %d epochs, best %d", run.name, run.epoch, run.best_epoch)


def train_epoch(run: Run, batches: Batches, seed: int) -> float:
    """Take one step a batch and return the mean loss over all atoms, each as it was before its step."""
    if run.replay is not None:
        picks = batches.picks(seed, run.first_epoch + run.epoch)
        return run.replay.mean_loss(picks, True, lambda loss, structures: _check(run, loss, structures))
    total, atoms = 0.0, 0
    for batch in batches.epoch(seed, run.first_epoch + run.epoch):
        loss: Any = _loss(run, batch)
        run.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        run.optimiser.step()
        total += float(loss.detach()) * len(batch)
        atoms += len(batch)
    return total / atoms


def _validation_loss(run: Run, batches: Batches) -> float:
    if run.replay is not None:
        picks = batches.picks_in_order()
        return run.replay.mean_loss(picks, False, lambda loss, structures: _check(run, loss, structures))
    total, atoms = 0.0, 0
    with torch.no_grad():
        for batch in batches.in_order():
            total += float(_loss(run, batch)) * len(batch)
            atoms += len(batch)
    return total / atoms


def _loss(run: Run, batch: Batch) -> Tensor:
    try:
        loss = run.loss(batch.x, batch.y)
    except FitError as error:
        raise FitError(f"epoch {run.epoch}, {_named(batch.structures)}: {error}") from error
    _check(run, float(loss.detach()), batch.structures)
    return loss


def _check(run: Run, loss: float, structures: NDArray[np.int64]) -> None:
    if not math.isfinite(loss):
        raise FitError(
            f"epoch {run.epoch}, {_named(structures)}: the {run.name} loss is {loss};"
            f" try a smaller learning rate than {run.learning_rate}"
        )


def _named(structures: NDArray[np.int64]) -> str:
    rows = ", ".join(f"{row}" if part == 0 else f"{part}:{row}" for part, row in structures)
    return f"batch of structures {rows}"
