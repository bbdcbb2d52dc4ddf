"""Training the projection from cached node features to the last layer's features. Imports torch."""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from forceuq.backbones.head import ForceHead
from forceuq.bll.batches import MEMORY_BYTES, Batch, Batches, Standardisation
from forceuq.bll.evidence import noise_covariance
from forceuq.bll.objectives import ErrorObjective, EvidenceObjective, Objective
from forceuq.errors import DataError, FitError
from forceuq.features.cache import FeatureReader
from forceuq.files import whole_file

_LOGGER = logging.getLogger(__name__)

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.nn.functional.silu,
    "ssp": lambda x: torch.nn.functional.softplus(x) - math.log(2.0),
    "relu": torch.nn.functional.relu,
    "tanh": torch.tanh,
}


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
        memory_bytes: of features held.
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


class _Projection:
    """The hidden layers, acting on standardised node features."""

    def __init__(self, head: ForceHead, standardisation: Standardisation, fold: bool, device: str) -> None:
        if head.activation not in _ACTIVATIONS:
            raise FitError(f"the head's activation {head.activation!r} is not one of {sorted(_ACTIVATIONS)}")
        self._head = head
        self._standardisation = standardisation
        self._activation = _ACTIVATIONS[head.activation]
        self.layers: list[tuple[Tensor, Tensor]] = []
        for index, (weight, bias) in enumerate(head.weights):
            w, b = np.asarray(weight, dtype=np.float64), np.asarray(bias, dtype=np.float64)
            if index == 0 and fold:
                # W x + b = (W diag(std)) ((x - mean) / std) + (b + W mean)
                w, b = w * standardisation.std, b + w @ standardisation.mean
            self.layers.append(
                tuple(  # type: ignore[arg-type]
                    torch.tensor(a, dtype=torch.float32, device=device, requires_grad=True) for a in (w, b)
                )
            )

    def parameters(self) -> dict[str, Tensor]:
        return {
            f"layer{index}.{name}": tensor
            for index, layer in enumerate(self.layers)
            for name, tensor in zip(("weight", "bias"), layer, strict=True)
        }

    def __call__(self, x: Tensor) -> Tensor:
        for weight, bias in self.layers:
            x = self._activation(torch.nn.functional.linear(x, weight, bias))
        return x

    def head(self) -> ForceHead:
        """Return the head with these layers, the standardisation folded back."""
        weights = []
        for index, layer in enumerate(self.layers):
            w, b = (tensor.detach().cpu().numpy().astype(np.float64) for tensor in layer)
            if index == 0:
                w = w / self._standardisation.std
                b = b - w @ self._standardisation.mean
            weights.append((w.astype(np.float32), b.astype(np.float32)))
        return replace(self._head, weights=tuple(weights))


class _Run:
    """A training's state: everything that a checkpoint holds."""

    def __init__(self, projection: _Projection, objective: Objective, settings: TrainingSettings, key: str) -> None:
        self.projection = projection
        self.objective = objective
        self.settings = settings
        self.key = key
        self.tensors = {**projection.parameters(), **objective.parameters()}
        self.optimiser = torch.optim.Adam(list(self.tensors.values()), lr=settings.learning_rate)
        self.epoch = 0
        self.best_epoch = 0
        self.best_loss = math.inf
        self.best = self._values()
        self.trace: list[tuple[float | None, float]] = []
        self.seconds = 0.0

    def _values(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def restore(self, values: dict[str, Tensor]) -> None:
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
        with whole_file(path) as temporary:
            torch.save(state, temporary)

    def resume(self, path: Path) -> bool:
        """Take up the state of a checkpoint of this same training; one of another is left alone."""
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
        self.optimiser.load_state_dict(state["optimiser"])
        self.epoch, self.best_epoch = state["epoch"], state["best_epoch"]
        self.best_loss, self.seconds = state["best_loss"], state["seconds"]
        self.trace = [(entry[0], entry[1]) for entry in state["trace"]]
        _LOGGER.info("resuming after epoch %d", self.epoch)
        return True


def _key(settings: TrainingSettings, seed: int, head: ForceHead, readers: Sequence[FeatureReader]) -> str:
    """Digest of everything that the result depends on, so that no checkpoint of other data is taken up."""
    digest = hashlib.sha256(json.dumps([repr(settings), seed], sort_keys=True).encode())
    for weight, bias in head.weights:
        digest.update(np.ascontiguousarray(weight).tobytes() + np.ascontiguousarray(bias).tobytes())
    for reader in readers:
        digest.update(reader.digest().encode())
    return digest.hexdigest()


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
    expected = np.shape(head.weights[0][0])[1]
    if not width == validation.metadata.width == expected:
        raise DataError(
            f"node features have {width} (validation: {validation.metadata.width}) numbers, the head takes {expected}",
            file=train.directories[0],
        )
    standardisation = Standardisation.of(train)
    batches = Batches(train, standardisation, settings.batch_structures, settings.memory_bytes)
    held_out = Batches(validation, standardisation, settings.batch_structures, settings.memory_bytes)
    # A fresh layer takes its random weights on the standardised features.
    projection = _Projection(head, standardisation, settings.width is None, settings.device)
    objective: EvidenceObjective | ErrorObjective
    if settings.objective == "nlml":
        objective = EvidenceObjective(len(head.weights[-1][1]), train.metadata.targets, settings.device)
    else:
        start = np.asarray(head.out_weight) * np.asarray(head.std).reshape(-1, 1)
        objective = ErrorObjective(start if settings.width is None else head.out_weight, settings.device)
    run = _Run(projection, objective, settings, _key(settings, seed, head, (train, validation)))
    path = checkpoints / "projection.pt"
    if not run.resume(path):
        run.record(None, _validation_loss(run, held_out))
    with tqdm(
        total=settings.max_epochs, initial=run.epoch, desc=settings.objective, unit="epoch", mininterval=5
    ) as bar:
        while run.stopped is None:
            began = time.perf_counter()
            run.epoch += 1
            training = _train_epoch(run, batches, seed)
            run.record(training, _validation_loss(run, held_out))
            run.seconds += time.perf_counter() - began
            run.save(path)
            bar.update()
            bar.set_postfix(validation=f"{run.trace[-1][1]:.4f}", best=run.best_epoch)
    run.restore(run.best)
    learned = isinstance(objective, EvidenceObjective)
    tensors = {name: tensor.detach().cpu().numpy() for name, tensor in objective.parameters().items()}
    _LOGGER.info("%s: %d epochs, best %d", settings.objective, run.epoch, run.best_epoch)
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


def _loss(run: _Run, batch: Batch) -> Tensor:
    x = torch.from_numpy(batch.x).to(run.settings.device)
    y = torch.from_numpy(batch.y).to(run.settings.device)
    try:
        loss = run.objective(run.projection(x), y)
    except FitError as error:
        raise FitError(f"epoch {run.epoch}, {_named(batch)}: {error}") from error
    if not math.isfinite(float(loss.detach())):
        raise FitError(
            f"epoch {run.epoch}, {_named(batch)}: the {run.settings.objective} loss is {float(loss.detach())};"
            f" try a smaller learning rate than {run.settings.learning_rate}"
        )
    return loss


def _named(batch: Batch) -> str:
    rows = ", ".join(f"{row}" if part == 0 else f"{part}:{row}" for part, row in batch.structures)
    return f"batch of structures {rows}"


def _train_epoch(run: _Run, batches: Batches, seed: int) -> float:
    total, atoms = 0.0, 0
    for batch in batches.epoch(seed, run.epoch):
        loss: Any = _loss(run, batch)
        run.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        run.optimiser.step()
        total += float(loss.detach()) * len(batch.y)
        atoms += len(batch.y)
    return total / atoms


def _validation_loss(run: _Run, batches: Batches) -> float:
    total, atoms = 0.0, 0
    with torch.no_grad():
        for batch in batches.in_order():
            total += float(_loss(run, batch)) * len(batch.y)
            atoms += len(batch.y)
    return total / atoms
