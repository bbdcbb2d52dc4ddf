"""Training the projection from cached node features to the last layer's features. Imports torch."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from forceuq.backbones.head import ForceHead
from forceuq.bll.batches import MEMORY_BYTES, Batches, Standardisation, check_width
from forceuq.bll.evidence import noise_covariance
from forceuq.bll.objectives import ErrorObjective, EvidenceObjective
from forceuq.bll.projection import Projection
from forceuq.bll.run import Run, train_epochs, training_key
from forceuq.features.cache import FeatureReader


@dataclass(frozen=True)
class TrainingSettings:
    """How a projection is trained.

    Args:
        objective: ``nlml`` (eq. 7 on the minibatch) or ``mse``.
        learning_rate: of Adam.
        batch_structures: structures in a batch, at most.
        patience: epochs without a lower validation loss after which training stops.
        max_epochs: after which it stops in any case.
        width: None to start from the head's hidden layers, or D of one fresh layer in their place.
        device: torch's name of where to train.
        memory_bytes: of features held, in the device's memory.
    """

    objective: Literal["mse", "nlml"]
    learning_rate: float = 1e-3
    batch_structures: int = 64
    patience: int = 10
    max_epochs: int = 1000
    width: int | None = None
    device: str = "cpu"
    memory_bytes: int = MEMORY_BYTES


@dataclass(frozen=True)
class TrainedProjection:
    """A projection, its best epoch's, and what was learned with it.

    Args:
        head: its hidden layers are the trained ones, on node features as cached.
        precision: (D,) lambda learned by ``nlml``; None for ``mse``.
        noise: (K, K) Sigma_e likewise.
        epochs: run.
        best_epoch: the one restored, counted from 1; 0 if none was better than the start.
        stopped: why training ended: ``patience`` or ``max_epochs``.
        trace: training and validation loss of each epoch; the first entry is the start, without training.
        seconds: of training, over all attempts; of an interrupted epoch nothing counts.
    """

    head: ForceHead
    precision: NDArray[np.float64] | None
    noise: NDArray[np.float64] | None
    epochs: int
    best_epoch: int
    stopped: str
    trace: tuple[tuple[float | None, float], ...]
    seconds: float


def fresh_head(head: ForceHead, node_dim: int, width: int, seed: int) -> ForceHead:
    """Return ``head`` with one new hidden layer of ``width`` in place of its own, and a new last layer.

    Weights are uniform within 1 / sqrt(inputs), as torch's linear layer has them.
    """
    rng = np.random.default_rng([seed, 0x0F0CE])
    bound, out_bound = 1.0 / math.sqrt(node_dim), 1.0 / math.sqrt(width)
    weight = rng.uniform(-bound, bound, (width, node_dim)).astype(np.float32)
    bias = rng.uniform(-bound, bound, width).astype(np.float32)
    out = rng.uniform(-out_bound, out_bound, (3, width)).astype(np.float32)
    return replace(head, weights=((weight, bias),), out_weight=out, out_bias=np.zeros(3, dtype=np.float32))


def train_projection(
    train: FeatureReader,
    validation: FeatureReader,
    head: ForceHead,
    settings: TrainingSettings,
    seed: int,
    checkpoints: Path,
) -> TrainedProjection:
    """Train the hidden layers of a head on cached node features; the backbone stays as it is.

    The features are standardised on the way in, and the first layer adjusted, so that training starts from
    what the head computes and the result acts on features as cached. Training stops early on the objective
    itself, over the validation structures in batches of the same size, and the best epoch is restored
    (Appendix B names the split and the patience; that the loss is the objective is our reading). A checkpoint
    is written every epoch; a training that was interrupted goes on from it to the same bits.

    Args:
        train: node features of the training structures.
        validation: those of the validation structures.
        head: where to start from.
        settings: how.
        seed: of the order of structures, and of a fresh layer.
        checkpoints: directory of the checkpoint.

    Raises:
        FitError: no structures, or a loss that is not finite, naming epoch and structures.
        DataError: a cache or a checkpoint that is damaged, or of another width than the head takes.
    """
    width = train.metadata.width
    if settings.width is not None:
        head = fresh_head(head, width, settings.width, seed)
    check_width((train, validation), head)
    standardisation = Standardisation.of(train)
    batches, held_out = (
        Batches(reader, standardisation, settings.batch_structures, settings.memory_bytes, settings.device)
        for reader in (train, validation)
    )
    # A fresh layer takes its random weights on the standardised features.
    projection = Projection(head, standardisation, settings.width is None, settings.device)
    objective: EvidenceObjective | ErrorObjective
    if settings.objective == "nlml":
        objective = EvidenceObjective(len(head.weights[-1][1]), train.metadata.targets, settings.device)
    else:
        start = np.asarray(head.out_weight) * np.asarray(head.std).reshape(-1, 1)
        objective = ErrorObjective(start if settings.width is None else head.out_weight, settings.device)

    def loss(x: Tensor, y: Tensor, real: Tensor | None = None) -> Tensor:
        return objective(projection(x), y, real)

    run = Run(
        settings.objective,
        {**projection.parameters(), **objective.parameters()},
        loss,
        learning_rate=settings.learning_rate,
        patience=settings.patience,
        max_epochs=settings.max_epochs,
        key=training_key(settings, seed, head, (train, validation)),
    )
    train_epochs(run, batches, held_out, seed, checkpoints / "projection.pt")
    run.restore(run.best)
    learned = isinstance(objective, EvidenceObjective)
    tensors = {name: tensor.detach().cpu().numpy() for name, tensor in objective.parameters().items()}
    return TrainedProjection(
        head=projection.head(),
        precision=np.exp(tensors["log_precision"]) if learned else None,
        noise=noise_covariance(tensors["noise"]) if learned else None,
        epochs=run.epoch,
        best_epoch=run.best_epoch,
        stopped=run.stopped or "",
        trace=tuple(run.trace),
        seconds=run.seconds,
    )
