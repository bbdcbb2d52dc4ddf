"""SWAG: a Gaussian over weights from the iterates of training (Maddox et al., arXiv:1902.02476). Imports torch.

The weights w are all of the force head's, on standardised node features, as one vector of P numbers.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forceuq.backbones.head import ForceHead
from forceuq.bll.batches import Standardisation
from forceuq.bll.run import Run, train_epochs, training_key
from forceuq.bll.tensors import load_tensors
from forceuq.errors import DataError
from forceuq.features.cache import FeatureReader
from forceuq.files import whole_file
from forceuq.force_head.training import HeadSettings, HeadTraining, StandardisedHead, count_parameters

_SCHEMA = "swag-posterior"
_STREAM = 0x53574147


class Moments:
    """Running first and second moments of iterates, and the last deviations (algorithm 1).

    In double precision: the variance is a small difference of the two. The weights that the collection starts
    from are not an iterate, as in the authors' code; algorithm 1, taken literally, counts them as one.

    Args:
        rank: K, deviations that are kept.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.n = 0
        self.first = torch.zeros(0, dtype=torch.float64)
        self.second = torch.zeros(0, dtype=torch.float64)
        self.deviations: list[Tensor] = []

    def observe(self, tensors: Mapping[str, Tensor]) -> None:
        """Take in an iterate."""
        w = torch.cat([tensor.detach().double().cpu().ravel() for tensor in tensors.values()])
        if self.n == 0:
            self.first, self.second = torch.zeros_like(w), torch.zeros_like(w)
        self.first = (self.first * self.n + w) / (self.n + 1)
        self.second = (self.second * self.n + w**2) / (self.n + 1)
        self.n += 1
        # From the mean as it is by now, not from the final one.
        self.deviations = [*self.deviations, w - self.first][-self.rank :]

    def state(self) -> dict[str, Tensor]:
        """Return everything for a checkpoint."""
        deviations = torch.stack(self.deviations) if self.deviations else torch.zeros(0, dtype=torch.float64)
        return {"n": torch.tensor(self.n), "first": self.first, "second": self.second, "deviations": deviations}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up what ``state`` returned."""
        self.n, self.first, self.second = int(state["n"]), state["first"], state["second"]
        self.deviations = list(state["deviations"])

    def gaussian(self) -> "WeightGaussian":
        """Return the Gaussian that the moments describe."""
        variance = (self.second - self.first**2).clamp(min=0.0)
        return WeightGaussian(self.first.numpy(), variance.numpy(), torch.stack(self.deviations).numpy())


@dataclass(frozen=True)
class WeightGaussian:
    """N(mean, (diag(variance) + D D^T / (K - 1)) / 2), eq. (1) with section 3.2.

    Args:
        mean: (P,) float64.
        variance: (P,), not negative.
        deviations: (K, P), the transpose of D.
    """

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    deviations: NDArray[np.float64]

    def samples(self, count: int, seed: int) -> Iterator[NDArray[np.float64]]:
        """Yield samples (P,): mean + sqrt(variance / 2) z1 + D z2 / sqrt(2 (K - 1)).

        The first of them do not depend on how many are drawn.

        Args:
            count: how many.
            seed: of z1 and z2.
        """
        rng = np.random.default_rng([seed, _STREAM])
        scale = np.sqrt(0.5 * self.variance)
        rank = len(self.deviations)
        for _ in range(count):
            z1, z2 = rng.standard_normal(len(self.mean)), rng.standard_normal(rank)
            # Not a matrix product: the order of its sum would depend on the machine.
            low_rank = (z2[:, None] * self.deviations).sum(axis=0) / np.sqrt(2.0 * (rank - 1))
            yield self.mean + scale * z1 + low_rank


@dataclass(frozen=True)
class SwagPosterior:
    """The Gaussian over a head's weights.

    Args:
        head: the head that its collection started from, which says what the weights are of.
        standardisation: of the node features that the weights act on.
        weights: the Gaussian.
    """

    head: ForceHead
    standardisation: Standardisation
    weights: WeightGaussian

    def heads(self, count: int, seed: int) -> list[ForceHead]:
        """Return the heads of ``count`` samples, on features as cached."""
        template = StandardisedHead(self.head, self.standardisation)
        heads = []
        for sample in self.weights.samples(count, seed):
            _fill(template, sample)
            heads.append(template.head())
        return heads

    def save(self, directory: Path) -> None:
        """Write the Gaussian and its head into ``directory``, the same bytes for the same content."""
        from safetensors.numpy import save_file

        self.head.save(directory / "head.safetensors")
        tensors = {
            "mean": self.weights.mean,
            "variance": self.weights.variance,
            "deviations": self.weights.deviations,
            "features.mean": self.standardisation.mean,
            "features.std": self.standardisation.std,
        }
        with whole_file(directory / "swag.safetensors") as temporary:
            save_file(
                {name: np.ascontiguousarray(value) for name, value in tensors.items()},
                temporary,
                metadata={"forceuq": _SCHEMA},
            )

    @classmethod
    def load(cls, directory: Path) -> "SwagPosterior":
        """Read what ``save`` wrote.

        Raises:
            DataError: a file is missing or damaged, or they are not of the same head.
        """
        head = ForceHead.load(directory / "head.safetensors")
        path = directory / "swag.safetensors"
        names = ("mean", "variance", "deviations", "features.mean", "features.std")
        mean, variance, deviations, *features = (load_tensors(path, _SCHEMA, names)[name] for name in names)
        posterior = cls(head, Standardisation(*features), WeightGaussian(mean, variance, deviations))
        width = np.shape(head.weights[0][0])[1]
        expected = count_parameters(head)
        shapes = [x.shape for x in (mean, variance, deviations[:1], *features)]
        if shapes != [(expected,), (expected,), (1, expected), (width,), (width,)]:
            raise DataError(f"is not of the head beside it, which has {expected} weights: fit it again", file=path)
        return posterior


def _fill(template: StandardisedHead, values: NDArray[np.float64]) -> None:
    start = 0
    with torch.no_grad():
        for tensor in template.parameters().values():
            piece = values[start : start + tensor.numel()]
            tensor.copy_(torch.from_numpy(piece.astype(np.float32)).reshape(tensor.shape))
            start += tensor.numel()


@dataclass(frozen=True)
class Collected:
    """What a collection gave.

    Args:
        posterior: the Gaussian.
        trace: training and validation loss of each epoch; the first entry is the start, without training.
        seconds: of training, over all attempts; of an interrupted epoch nothing counts.
    """

    posterior: SwagPosterior
    trace: tuple[tuple[float | None, float], ...]
    seconds: float


def collect(
    train: FeatureReader,
    validation: FeatureReader,
    head: ForceHead,
    adam: Mapping[str, NDArray[np.float32]],
    settings: HeadSettings,
    epochs: int,
    rank: int,
    seed: int,
    checkpoints: Path,
) -> Collected:
    """Go on training a head for some epochs at the same rate, an iterate each, and return their Gaussian.

    With Adam's state at the first stage's best epoch this stage is what the first would have been without early
    stopping, but for the order of structures. (The paper says that the best checkpoint is reloaded, and not
    whether that includes the optimiser's state. A new one takes its first steps at the full rate in every
    weight, which throws the head far off; the iterates are then those of its way back.)

    Args:
        train: node features of the training structures.
        validation: those of the validation structures; their loss is only reported.
        head: the first stage's.
        adam: Adam's state to go on with; empty for a new one.
        settings: the first stage's; ``patience`` has no part in this.
        epochs: T, how many.
        rank: K, deviations that are kept.
        seed: of the order of structures; epochs are numbered from ``settings.max_epochs`` on, so that no order is
            one of the first stage's.
        checkpoints: directory of the checkpoint; an interrupted collection goes on from it to the same bits.

    Raises:
        FitError: no structures, or a loss that is not finite, naming epoch and structures.
        DataError: a cache or a checkpoint that is damaged, or of another width than the head takes.
        ConfigurationError: there is no GPU for ``cuda``.
    """
    training = HeadTraining(train, validation, head, settings)
    moments = Moments(rank)
    run = Run(
        "swag mse",
        training.head.parameters(),
        training.loss,
        learning_rate=settings.learning_rate,
        patience=None,
        max_epochs=epochs,
        key=training_key((settings, epochs, rank, _digest(adam)), seed, head, training.readers),
        observer=moments,
        first_epoch=settings.max_epochs,
    )
    run.restore_adam({name: torch.from_numpy(np.array(value)) for name, value in adam.items()})
    train_epochs(run, training.batches, training.held_out, seed, checkpoints / "swag.pt")
    posterior = SwagPosterior(head, training.standardisation, moments.gaussian())
    return Collected(posterior, tuple(run.trace), run.seconds)


def _digest(arrays: Mapping[str, NDArray[np.float32]]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
