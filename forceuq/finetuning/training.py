"""Training of named parameters on batches of structures, with early stopping and resumption. Imports torch."""

import contextlib
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from forceuq.errors import DataError, FitError
from forceuq.files import whole_file
from forceuq.finetuning.frames import Batch, Frames
from forceuq.finetuning.processes import Processes

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Group:
    """Parameters that are trained at one rate.

    Args:
        name: for the report.
        parameters: by name; names are unique over all groups.
        learning_rate: of Adam.
    """

    name: str
    parameters: Mapping[str, nn.Parameter]
    learning_rate: float


@dataclass(frozen=True)
class TrainingSettings:
    """How long to train.

    Args:
        patience: epochs without a lower validation loss after which training stops.
        max_epochs: after which it stops in any case.
    """

    patience: int = 10
    max_epochs: int = 1000


@dataclass(frozen=True)
class Trained:
    """What a training did; the parameters themselves are those of its best epoch, in place.

    Args:
        epochs: run.
        best_epoch: the one restored, counted from 1; 0 if none was better than the start.
        stopped: why training ended: ``patience`` or ``max_epochs``.
        trace: training and validation loss of each epoch; the first entry is the start, without training.
        seconds: of training, over all attempts; of an interrupted epoch nothing counts.
    """

    epochs: int
    best_epoch: int
    stopped: str
    trace: tuple[tuple[float | None, float], ...]
    seconds: float


class _Run:
    """A training's state: everything that a checkpoint holds."""

    def __init__(self, groups: Sequence[Group], settings: TrainingSettings, key: str, processes: Processes) -> None:
        self.settings = settings
        self.key = key
        self.processes = processes
        self.rates = {group.name: group.learning_rate for group in groups}
        self.tensors = {name: parameter for group in groups for name, parameter in group.parameters.items()}
        if len(self.tensors) != sum(len(group.parameters) for group in groups):
            raise ValueError("two groups share a parameter's name")
        for parameter in self.tensors.values():
            parameter.requires_grad_(True)
        self.optimiser = torch.optim.Adam(
            [{"params": list(group.parameters.values()), "lr": group.learning_rate} for group in groups]
        )
        self.epoch = 0
        self.best_epoch = 0
        self.best_loss = math.inf
        self.best = self._values()
        self.trace: list[tuple[float | None, float]] = []
        self.seconds = 0.0

    def _values(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def restore(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(values[name])

    def record(self, training: float | None, validation: float) -> None:
        self.trace.append((training, validation))
        if validation < self.best_loss:
            self.best_loss, self.best_epoch, self.best = validation, self.epoch, self._values()

    @property
    def stopped(self) -> str | None:
        if self.epoch - self.best_epoch >= self.settings.patience:
            return "patience"
        return "max_epochs" if self.epoch >= self.settings.max_epochs else None

    def save(self, path: Path) -> None:
        state = {
            "key": self.key,
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "trace": self.trace,
            "seconds": self.seconds,
            "values": self._values(),
            "best": self.best,
            "optimiser": self.optimiser.state_dict(),
        }
        if self.processes.first:
            with whole_file(path) as temporary:
                torch.save(state, temporary)

    def resume(self, path: Path) -> bool:
        """Take up a checkpoint of the same training, if there is one and it is not beyond ``max_epochs``."""
        if not path.exists():
            return False
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            key = state["key"]
        except Exception as error:
            raise DataError(f"damaged checkpoint ({error}): delete it, training starts anew", file=path) from error
        if key != self.key:
            _LOGGER.warning("%s is of another training; starting anew", path)
            return False
        limit = self.settings.max_epochs
        if state["epoch"] > limit:
            # Its best epoch may be one that a training of these settings never comes to.
            _LOGGER.warning(
                "%s was trained for %d epochs, more than max_epochs, %d; starting anew", path, state["epoch"], limit
            )
            return False
        self.restore(state["values"])
        self.best = {name: value.to(self.tensors[name]) for name, value in state["best"].items()}
        self.optimiser.load_state_dict(state["optimiser"])
        self.epoch, self.best_epoch = state["epoch"], state["best_epoch"]
        self.best_loss, self.seconds = state["best_loss"], state["seconds"]
        self.trace = [(entry[0], entry[1]) for entry in state["trace"]]
        _LOGGER.info("resuming after epoch %d", self.epoch)
        return True


def key_of(*parts: object) -> str:
    """Return the digest of everything that a training's result depends on."""
    return hashlib.sha256(json.dumps([repr(part) for part in parts]).encode()).hexdigest()


def train(
    groups: Sequence[Group],
    loss: Callable[[Batch], Tensor],
    training: Frames,
    validation: Frames,
    settings: TrainingSettings,
    seed: int,
    key: str,
    checkpoint: Path,
    processes: Processes,
    validation_loss: Callable[[Batch], Tensor] | None = None,
) -> Trained:
    """Train by Adam until the validation loss has not fallen for ``patience`` epochs; restore the best epoch.

    A loss returns the mean over a batch's atoms, and of a shared batch this process's part of it, so that the
    processes' losses and gradients add up to those of the batch. torch's global generator is seeded by seed and epoch
    around it, the same in every process, so a loss may draw random numbers and an interrupted training still resumes
    to the same bits, on as many processes; on another number it goes on with sums in another order.

    Args:
        groups: what is trained; everything else stays as it is.
        loss: of a batch.
        training: structures.
        validation: structures for early stopping.
        settings: how long.
        seed: of the order of structures and of the losses' random numbers.
        key: of the training, as ``key_of`` makes it; a checkpoint with another key is not used.
        checkpoint: file that is written every epoch, and taken up if it is there and has not more than ``max_epochs``.
        processes: this one and those beside it. Their precision is that of the training passes; validation is in
            float32 always, so that its losses can be compared.
        validation_loss: where it is another than ``loss``.

    Raises:
        FitError: a loss that is not finite, naming epoch and structures: in all processes.
        DataError: structures that cannot be read, or a damaged checkpoint.
    """
    run = _Run(groups, settings, key, processes)
    judge = validation_loss or loss
    with deterministic():
        resumed = run.resume(checkpoint)
        processes.must_agree(run.tensors.values(), "weights at the start")
        if not resumed:
            run.record(None, _validate(run, judge, validation, seed))
        quiet = not processes.first
        with tqdm(total=settings.max_epochs, initial=run.epoch, unit="epoch", mininterval=5, disable=quiet) as bar:
            while run.stopped is None:
                began = time.perf_counter()
                run.epoch += 1
                run.record(_epoch(run, loss, training, seed), _validate(run, judge, validation, seed))
                run.seconds += time.perf_counter() - began
                processes.must_agree(run.tensors.values(), f"weights after epoch {run.epoch}")
                run.save(checkpoint)
                bar.update()
                bar.set_postfix(validation=f"{run.trace[-1][1]:.4f}", best=run.best_epoch, refresh=False)
    run.restore(run.best)
    _LOGGER.info("%d epochs, best %d, stopped by %s", run.epoch, run.best_epoch, run.stopped)
    return Trained(run.epoch, run.best_epoch, run.stopped or "", tuple(run.trace), run.seconds)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Make sums over neighbours run in a fixed order: otherwise several threads add in whichever order they come."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextlib.contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        yield


def _epoch(run: _Run, loss: Callable[[Batch], Tensor], frames: Frames, seed: int) -> float:
    here = run.processes
    parameters = list(run.tensors.values())

    def step(value: Tensor) -> None:
        run.optimiser.zero_grad(set_to_none=True)
        here.backward(value, parameters)
        run.optimiser.step()

    def cast(batch: Batch) -> Tensor:
        with here.autocast():
            return loss(batch)

    with _seeded(seed, run.epoch, 0):
        return _mean(run, cast, frames.epoch(seed, run.epoch, here.rank, here.count), step, "training")


def _validate(run: _Run, loss: Callable[[Batch], Tensor], frames: Frames, seed: int) -> float:
    here = run.processes
    # The same random numbers every epoch: early stopping then compares weights and not draws.
    with torch.no_grad(), _seeded(seed, 0, 1):
        return _mean(run, loss, frames.in_order(here.rank, here.count), lambda _: None, "validation")


def _mean(
    run: _Run,
    loss: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    step: Callable[[Tensor], None],
    what: str,
) -> float:
    total, atoms = 0.0, 0
    for batch in map(run.processes.told, batches):
        value = loss(batch)
        number = run.processes.total(float(value.detach()))
        ids, sizes = (batch.structure_ids, batch.sizes)
        if batch.share is not None:
            ids, sizes = batch.share.structure_ids, batch.share.atoms
        if not math.isfinite(number):
            raise FitError(
                f"epoch {run.epoch}, {what} batch of structures {', '.join(ids)}: the loss is"
                f" {number}; look at these structures, or try smaller learning rates than {run.rates}"
            )
        step(value)
        total += number * sum(sizes)
        atoms += sum(sizes)
    return total / atoms
