"""Training the whole force head on the force error, from cached node features. Imports torch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forceuq.backbones.head import ForceHead
from forceuq.bll.batches import MEMORY_BYTES, Batches, Standardisation, check_width
from forceuq.bll.objectives import mean_square
from forceuq.bll.projection import Projection
from forceuq.bll.run import Run, train_epochs, training_key
from forceuq.errors import ConfigurationError
from forceuq.features.cache import FeatureReader


@dataclass(frozen=True)
class HeadSettings:
    """How a head is trained.

    Args:
        learning_rate: of Adam.
        batch_structures: structures in a batch, at most.
        patience: epochs without a lower validation loss after which training stops.
        max_epochs: after which it stops in any case.
        device: torch's name of where to train.
        memory_bytes: of features held, in the device's memory.
    """

    learning_rate: float = 1e-3
    batch_structures: int = 64
    patience: int = 10
    max_epochs: int = 1000
    device: str = "cpu"
    memory_bytes: int = MEMORY_BYTES


@dataclass(frozen=True)
class TrainedHead:
    """A head, its best epoch's.

    Args:
        head: all its layers, on node features as cached; its ``forces`` are the predictions, before ZBL.
        epochs: run.
        best_epoch: the one restored, counted from 1; 0 if none was better than the start.
        stopped: why training ended: ``patience`` or ``max_epochs``.
        trace: training and validation loss of each epoch; the first entry is the start, without training.
        seconds: of training, over all attempts; of an interrupted epoch nothing counts.
        adam: Adam's state at the best epoch, by layer and quantity, for a training that goes on from there.
    """

    head: ForceHead
    epochs: int
    best_epoch: int
    stopped: str
    trace: tuple[tuple[float | None, float], ...]
    seconds: float
    adam: Mapping[str, NDArray[np.float32]]


class StandardisedHead:
    """All layers of a head as tensors that can be trained, acting on standardised node features.

    Args:
        head: where to start from; it computes the same of features as cached.
        standardisation: of the node features.
        device: torch's name of where the tensors lie.

    Raises:
        FitError: an activation that is not known.
    """

    def __init__(self, head: ForceHead, standardisation: Standardisation, device: str = "cpu") -> None:
        self._projection = Projection(head, standardisation, True, device)
        self._weight, self._bias = (
            torch.tensor(np.asarray(x), dtype=torch.float32, device=device, requires_grad=True)
            for x in (head.out_weight, head.out_bias)
        )
        self._mean, self._std = (
            torch.tensor(np.asarray(x), dtype=torch.float32, device=device) for x in (head.mean, head.std)
        )

    def parameters(self) -> dict[str, Tensor]:
        """Return weights and biases by name; the last layer's give the output as the head normalises it."""
        return {**self._projection.parameters(), "out.weight": self._weight, "out.bias": self._bias}

    def __call__(self, x: Tensor) -> Tensor:
        """Return forces (n, 3), eV/Å, of standardised features (n, node_dim)."""
        return torch.nn.functional.linear(self._projection(x), self._weight, self._bias) * self._std + self._mean

    def head(self) -> ForceHead:
        """Return the head with these weights, on features as cached."""
        weight, bias = (x.detach().cpu().numpy().copy() for x in (self._weight, self._bias))
        return replace(
            self._projection.head(), out_weight=weight, out_bias=bias, remove_mean=False, remove_torque=False
        )


class HeadTraining:
    """Data, trainable head and loss: what both of SWAG's stages have in common.

    Args:
        train: node features of the training structures.
        validation: those of the validation structures.
        head: where to start from.
        settings: how.

    Raises:
        FitError: no structures.
        DataError: a cache that is damaged, or of another width than the head takes.
        ConfigurationError: there is no GPU for ``cuda``.
    """

    def __init__(
        self, train: FeatureReader, validation: FeatureReader, head: ForceHead, settings: HeadSettings
    ) -> None:
        if settings.device == "cuda" and not torch.cuda.is_available():
            raise ConfigurationError("device: cuda, but torch finds no GPU here; use device: cpu")
        check_width((train, validation), head)
        self.readers = (train, validation)
        self.settings = settings
        self.start = head
        self.standardisation = Standardisation.of(train)
        self.batches, self.held_out = (
            Batches(reader, self.standardisation, settings.batch_structures, settings.memory_bytes, settings.device)
            for reader in self.readers
        )
        self.head = StandardisedHead(head, self.standardisation, settings.device)

    def loss(self, x: Tensor, y: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the mean squared error of a force component, (eV/Å)²; arguments as in ``BatchLoss``."""
        return mean_square(self.head(x) - y.float(), real)


def count_parameters(head: ForceHead) -> int:
    """Return the number of weights and biases of all layers."""
    arrays: list[NDArray[np.float32]] = [x for layer in head.weights for x in layer]
    return sum(np.size(x) for x in (*arrays, head.out_weight, head.out_bias))


def train_head(
    train: FeatureReader,
    validation: FeatureReader,
    head: ForceHead,
    settings: HeadSettings,
    seed: int,
    checkpoints: Path,
) -> TrainedHead:
    """Train all layers of a head on the mean squared force error; the backbone stays as it is (Appendix B).

    Training starts from the head's own weights, in its own normalisation of the output; the features are
    standardised on the way in and the first layer adjusted. As in the BLL (eq. 1), net force and net torque are
    left in the output: an atom's force then follows from its own features alone, in training and prediction
    alike, and methods on the same features differ in nothing else.

    Args:
        train: node features of the training structures.
        validation: those of the validation structures.
        head: where to start from.
        settings: how.
        seed: of the order of structures; nothing else is random.
        checkpoints: directory of the checkpoint; an interrupted training goes on from it to the same bits.

    Raises:
        FitError: no structures, or a loss that is not finite, naming epoch and structures.
        DataError: a cache or a checkpoint that is damaged, or of another width than the head takes.
        ConfigurationError: there is no GPU for ``cuda``.
    """
    training = HeadTraining(train, validation, head, settings)
    run = Run(
        "mse",
        training.head.parameters(),
        training.loss,
        learning_rate=settings.learning_rate,
        patience=settings.patience,
        max_epochs=settings.max_epochs,
        key=training_key(settings, seed, head, training.readers),
    )
    train_epochs(run, training.batches, training.held_out, seed, checkpoints / "head.pt")
    run.restore(run.best)
    return TrainedHead(
        head=training.head.head(),
        epochs=run.epoch,
        best_epoch=run.best_epoch,
        stopped=run.stopped or "",
        trace=tuple(run.trace),
        seconds=run.seconds,
        adam={name: value.cpu().numpy() for name, value in run.best_adam.items()},
    )
