"""SWAG: a Gaussian over the force head's weights, from the iterates of its training (arXiv:1902.02476).

Two stages (Appendix B): the force head is trained on the force error as by ``mse_head``; then training goes on
from its best weights for some epochs at the same rate, and the weights at the end of each epoch give mean,
diagonal and low-rank covariance.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from forceuq.errors import ConfigurationError
from forceuq.methods import BackboneSource, StructurePart, TrainingData, mse_head
from forceuq.methods._saved import options_and_seed, refuse_other_settings, write_saved
from forceuq.predictions import PredictionBlock, pack_symmetric

if TYPE_CHECKING:
    from forceuq.backbones.head import ForceHead
    from forceuq.force_head.swag import SwagPosterior


class Options(mse_head.Options):
    """Settings of SWAG; the defaults are the paper's (Appendix B)."""

    swag_epochs: int = Field(
        default=40, ge=2, description="Epochs of the second stage; each one's last weights are an iterate."
    )
    rank: int = Field(default=20, ge=2, description="K, last deviations that make the low-rank covariance.")
    adam_state: Literal["best", "fresh"] = Field(
        default="best",
        description="Adam's state in the second stage: as it was at the best epoch, reloaded with the weights, or a"
        " new one. The paper does not say. A new one throws the weights far off in its first steps, and the"
        " iterates then tell of the way back.",
    )
    samples: int = Field(default=10, ge=2, description="Weights that are drawn: forward passes of the head.")

    @model_validator(mode="after")
    def _enough_epochs(self) -> "Options":
        if self.rank > self.swag_epochs:
            raise ValueError(f"rank {self.rank} needs as many epochs, and swag_epochs is {self.swag_epochs}")
        return self


REUSES = {"mse_head": frozenset(mse_head.Options.model_fields) - {"device"}}


@dataclass(frozen=True)
class FittedSwag:
    """A Gaussian over force heads with a constant covariance of what they leave.

    Args:
        options: it was fitted with.
        seed: likewise, and of the samples: they are the same for every split.
        posterior: the Gaussian.
        noise: (3, 3) covariance of the training residuals of the mean prediction, (eV/Å)².
        report: what was done, with seconds: the one file that differs between runs.
    """

    options: Options
    seed: int
    posterior: "SwagPosterior"
    noise: NDArray[np.float64]
    report: dict[str, Any]

    @cached_property
    def heads(self) -> "list[ForceHead]":
        """The sampled heads, drawn from the seed."""
        return self.posterior.heads(self.options.samples, self.seed)

    def save(self, directory: Path) -> None:
        """Write the Gaussian (the samples follow from it and the seed), covariance, options and report."""
        from forceuq.files import write_json
        from forceuq.force_head.residuals import save_noise

        directory.mkdir(parents=True, exist_ok=True)
        self.posterior.save(directory)
        save_noise(directory, self.noise)
        write_json(directory / "report.json", self.report)
        write_saved(directory, "swag", self.seed, self.options)

    def predict(
        self, feature_dirs: Sequence[Path], structures: Sequence[StructurePart] = ()
    ) -> Iterator[PredictionBlock]:
        """Yield mean of the samples' forces (ZBL added back), floor and spread of every atom.

        The floor is the covariance of the training residuals; the spread that of the samples' forces about their
        mean, divided by the number S of samples and not by S - 1, as ``forceuq.methods.ensemble`` does: they
        are an equal mixture.

        Raises:
            DataError: a cache that is damaged, or of another width than the head takes.
        """
        from forceuq.bll.batches import check_width
        from forceuq.features.cache import FeatureReader

        reader = FeatureReader(feature_dirs)
        check_width((reader,), self.posterior.head)
        floor = pack_symmetric(self.noise)
        for block in reader.blocks():
            forces = sampled_forces(self.heads, block.features)
            mean = forces.mean(axis=0)
            apart = forces - mean
            yield PredictionBlock(
                structure=block.structure,
                atom=block.atom,
                number=block.number,
                part=np.full(len(block), block.part_index, dtype=np.int16),
                target=block.force,
                mean=mean + block.zbl,
                floor=np.broadcast_to(floor, (len(block), 6)),
                spread=pack_symmetric(np.einsum("sni,snj->nij", apart, apart) / len(forces)),
            )


def sampled_forces(heads: "Sequence[ForceHead]", features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the forces of S heads before ZBL, (S, n, 3) eV/Å, of node features (n, node_dim)."""
    return np.stack([head.forces(features) for head in heads])


def fit(
    data: TrainingData, options: Options, seed: int, checkpoints: Path, starts_from: Path | None = None
) -> FittedSwag:
    """Train the force head, then collect its iterates; see ``forceuq.force_head``.

    Args:
        data: feature caches and force head.
        options: settings.
        seed: of the order of structures, and of the samples.
        checkpoints: directory of both stages' checkpoints.
        starts_from: directory of a fit of kind ``mse_head`` with the same training and seed,
            whose head is then taken instead of trained again.

    Raises:
        ConfigurationError: ``starts_from`` was trained otherwise, or there is no GPU for ``device: cuda``.
        FitError: no structures, or a loss that is not finite.
        DataError: damaged or mismatched caches.
    """
    from forceuq.backbones.head import ForceHead
    from forceuq.features.cache import FeatureReader
    from forceuq.force_head.residuals import cached_residuals, residual_covariance
    from forceuq.force_head.swag import collect
    from forceuq.force_head.training import count_parameters, train_head

    train, validation = FeatureReader(data.train), FeatureReader(data.validation)
    settings = options.head_settings()
    if starts_from is not None:
        reused = _reuse(starts_from, options, seed)
        head, adam, first_seconds = reused.head, reused.adam, 0.0
        first: dict[str, Any] = {"reused": True}
    else:
        trained = train_head(train, validation, ForceHead.load(data.head), settings, seed, checkpoints)
        head, adam, first_seconds = trained.head, trained.adam, trained.seconds
        first = mse_head.training_report(trained)
    if options.adam_state == "fresh":
        adam = {}
    collected = collect(train, validation, head, adam, settings, options.swag_epochs, options.rank, seed, checkpoints)
    began = time.perf_counter()
    heads = collected.posterior.heads(options.samples, seed)
    noise = residual_covariance(cached_residuals(train, lambda x: sampled_forces(heads, x).mean(axis=0)))
    report = {
        "options": options.model_dump(mode="json"),
        "atoms": train.n_atoms,
        "structures": train.n_structures,
        "parameters": {"trained": count_parameters(head)},
        "samples": options.samples,
        # Of the head: the backbone itself runs once.
        "passes": {"backbone": 1, "head": options.samples},
        "seconds": {
            "training": first_seconds,
            "collection": collected.seconds,
            "residuals": time.perf_counter() - began,
        },
        "training": first,
        "collection": {
            "epochs": options.swag_epochs,
            "rank": options.rank,
            "adam_state": "best" if adam else "fresh",
            "trace": [list(entry) for entry in collected.trace],
        },
        "residual_covariance": noise.tolist(),
    }
    return FittedSwag(options, seed, collected.posterior, noise, report)


def _reuse(directory: Path, options: Options, seed: int) -> mse_head.FittedHead:
    found = mse_head.load(directory)
    refuse_other_settings(directory, found.options, options, REUSES["mse_head"])
    if found.seed != seed:
        raise ConfigurationError(
            f"starts_from: {directory} was trained with seed {found.seed}, this fit has seed {seed}: they must be alike"
        )
    return found


def load(directory: Path, backbone: BackboneSource | None = None) -> FittedSwag:
    """Read what ``FittedSwag.save`` wrote.

    Raises:
        DataError: a file is missing or damaged.
        ConfigurationError: the directory is a fit of another kind.
    """
    from forceuq.files import read_json
    from forceuq.force_head.residuals import load_noise
    from forceuq.force_head.swag import SwagPosterior

    options, seed = options_and_seed(directory, "swag", Options)
    return FittedSwag(
        options, seed, SwagPosterior.load(directory), load_noise(directory), read_json(directory / "report.json")
    )
