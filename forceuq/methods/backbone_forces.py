"""The backbone's own forces, as pretrained, with a constant covariance: a baseline."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from forceuq.errors import ConfigurationError, DataError, FitError
from forceuq.methods import BackboneSource, StructurePart, TrainingData
from forceuq.methods._saved import options_and_seed, read_saved, write_saved
from forceuq.predictions import PredictionBlock, pack_symmetric

if TYPE_CHECKING:
    from forceuq.finetuning.source import StructureBatch

NEEDS_STRUCTURES = True
_KIND = "backbone_forces"


class Options(BaseModel):
    """Settings of the backbone's forward passes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_atoms: int = Field(default=2048, ge=1, description="Atoms in a forward pass, at most.")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="Where the backbone runs.")


@dataclass(frozen=True)
class FittedBackboneForces:
    """A backbone with the covariance of its residuals.

    Args:
        options: it was fitted with.
        seed: likewise; without effect.
        source: the backbone.
        noise: (3, 3) covariance of the residuals on the training parts, (eV/Å)².
        report: what was done, with seconds: the one file that differs between runs.
    """

    options: Options
    seed: int
    source: BackboneSource
    noise: NDArray[np.float64]
    report: dict[str, Any]

    def save(self, directory: Path) -> None:
        """Write covariance, options and report; of the backbone's weights only their digest."""
        from forceuq.files import file_digest, write_json
        from forceuq.force_head.residuals import save_noise

        directory.mkdir(parents=True, exist_ok=True)
        save_noise(directory, self.noise)
        write_json(directory / "report.json", self.report)
        write_saved(directory, _KIND, self.seed, self.options, weights_sha256=file_digest(self.source.weights))

    def predict(
        self, feature_dirs: Sequence[Path], structures: Sequence[StructurePart] = ()
    ) -> Iterator[PredictionBlock]:
        """Yield mean (the backbone's forces, whole) and floor of every atom; the spread is zero.

        One covariance for all atoms: nothing is known of any single one. A calibration then has no b to fit.

        Args:
            feature_dirs: not used.
            structures: the parts.

        Raises:
            DataError: no parts, or structures that cannot be read.
            ConfigurationError: there is no GPU for ``device: cuda``.
        """
        packed = pack_symmetric(self.noise)
        for batch, forces in _backbone_forces(self.source, structures, self.options):
            floor = np.broadcast_to(packed, (len(forces), 6))
            yield batch.block(forces, floor, np.zeros((len(forces), 6)))


def _backbone_forces(
    source: BackboneSource, parts: Sequence[StructurePart], options: Options
) -> "Iterator[tuple[StructureBatch, NDArray[np.float64]]]":
    """Yield the parts' structures in batches with the backbone's forces (n, 3), eV/Å."""
    import torch

    from forceuq.backbones import load_backbone_module
    from forceuq.finetuning.source import structure_batches

    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device: cuda, but torch finds no GPU here; use device: cpu")
    module = load_backbone_module(source.kind)
    backbone = module.load(source.weights, module.Options(**source.options), options.device)
    for batch in structure_batches(source, _KIND, parts, options.batch_atoms):
        with torch.no_grad():
            yield batch, backbone.forces(batch.graph).double().cpu().numpy()


def fit(
    data: TrainingData, options: Options, seed: int, checkpoints: Path, starts_from: Path | None = None
) -> FittedBackboneForces:
    """Measure the residuals of the backbone's forces on the training parts; nothing is trained.

    Args:
        data: the training structures and the backbone; validation parts and feature caches are not used.
        options: settings.
        seed: without effect: nothing is random.
        checkpoints: not used: one pass over the structures is all there is.
        starts_from: must be None.

    Raises:
        ConfigurationError: ``starts_from`` is given, no backbone, or no GPU for ``device: cuda``.
        FitError: no structures, or residuals without a covariance.
        DataError: files that cannot be read.
    """
    from forceuq.force_head.residuals import residual_covariance

    if starts_from is not None:
        raise ConfigurationError("starts_from: the backbone's own forces start from no fit; drop starts_from")
    if data.backbone is None:
        raise ConfigurationError(f"a fit of kind {_KIND!r} needs the backbone itself, not only its features")
    if not data.train_structures:
        raise FitError("there are no training parts, so no training atoms whose residuals have a covariance")
    began = time.perf_counter()
    counts = {"atoms": 0, "structures": 0}

    def residuals(source: BackboneSource) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        for batch, forces in _backbone_forces(source, data.train_structures, options):
            counts["atoms"] += len(forces)
            counts["structures"] += len(batch.structures)
            target = np.concatenate([structure.forces for structure in batch.structures])
            yield np.repeat(np.array(batch.rows), [len(each) for each in batch.structures]), target - forces

    noise = residual_covariance(residuals(data.backbone))
    report = {
        "options": options.model_dump(mode="json"),
        **counts,
        "parameters": {"trained": 0},
        "passes": {"backbone": 1, "head": 1},
        "seconds": {"residuals": time.perf_counter() - began},
        "residual_covariance": noise.tolist(),
    }
    return FittedBackboneForces(options, seed, data.backbone, noise, report)


def load(directory: Path, backbone: BackboneSource | None = None) -> FittedBackboneForces:
    """Read what ``FittedBackboneForces.save`` wrote.

    Raises:
        ConfigurationError: no backbone, or a fit of another kind.
        DataError: a file is missing or damaged, or the backbone has other weights than it was fitted to.
    """
    from forceuq.files import file_digest, read_json
    from forceuq.force_head.residuals import load_noise

    options, seed = options_and_seed(directory, _KIND, Options)
    if backbone is None:
        raise ConfigurationError(f"{directory}: a fit of kind {_KIND!r} is loaded with its backbone")
    if file_digest(backbone.weights) != read_saved(directory, _KIND).get("weights_sha256"):
        raise DataError(f"is not the backbone that {directory} was fitted to: fit it again", file=backbone.weights)
    return FittedBackboneForces(options, seed, backbone, load_noise(directory), read_json(directory / "report.json"))
