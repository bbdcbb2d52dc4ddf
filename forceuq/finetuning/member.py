"""A fine-tuned member of an ensemble: training, what is kept of it, and its predictions. Imports torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forceuq.backbones import TrainableBackbone
from forceuq.errors import ConfigurationError
from forceuq.files import file_digest, read_json
from forceuq.finetuning.gaussian import GaussianForces, VarianceStart, renew_last_projection
from forceuq.finetuning.lora import inject, merge
from forceuq.finetuning.processes import Precision, Processes
from forceuq.finetuning.source import check_device, frames_of, load_trainable, structure_batches
from forceuq.finetuning.stored import (
    check_backbone,
    counts_of,
    read_values,
    save_fit,
    trace_of,
    values_of,
)
from forceuq.finetuning.training import Group, TrainingSettings, key_of, train
from forceuq.methods import BackboneSource, StructurePart, TrainingData
from forceuq.predictions import PredictionBlock, pack_symmetric

_SCHEMA = "finetuned-member"
_FILE = "member.safetensors"


@dataclass(frozen=True)
class Recipe:
    """What distinguishes one kind of member from another.

    Args:
        kind: of method, for the files.
        rank: of the adapters in the message-passing MLPs; None: no adapters, all weights are trained.
        alpha: of the adapters.
        scratch: start from random weights rather than from the backbone's.
        variance_start: how the variance head starts.
        learning_rate: of the adapters, or of all weights but the heads'.
        head_learning_rate: of force head and variance head.
    """

    kind: str
    rank: int | None
    alpha: float
    scratch: bool
    variance_start: VarianceStart
    learning_rate: float
    head_learning_rate: float


def build(
    source: BackboneSource, recipe: Recipe, seed: int, device: str
) -> tuple[TrainableBackbone, GaussianForces, list[Group]]:
    """Return a member before training, and what is trained of it.

    Args:
        source: the backbone.
        recipe: kind of member.
        seed: of the head's new last projection, the adapters, and the random weights from scratch.
        device: where it runs.

    Raises:
        ConfigurationError: no GPU for ``cuda``, or a backbone that cannot be fine-tuned.
        DataError: weights that cannot be read.
    """
    backbone = load_trainable(source, device, untrained_seed=seed if recipe.scratch else None)
    prefix, force_mlp = backbone.force_mlp()
    # Before it is copied for the variance head, which takes nothing of the last layer but its shape.
    renew_last_projection(force_mlp, seed)
    network = GaussianForces(backbone, recipe.variance_start).eval().requires_grad_(False)
    groups = []
    if recipe.rank is not None:
        adapters = inject(backbone.message_mlps(), recipe.rank, recipe.alpha, seed)
        groups.append(Group("adapters", adapters, recipe.learning_rate))
    else:
        body = {
            name: parameter
            for name, parameter in backbone.model.named_parameters()
            if not name.startswith(f"{prefix}.")
        }
        groups.append(Group("body", body, recipe.learning_rate))
    heads = (("force_head", prefix, force_mlp), ("variance_head", "variance", network.variance))
    for name, where, mlp in heads:
        named = {f"{where}.{parameter}": value for parameter, value in mlp.named_parameters()}
        groups.append(Group(name, named, recipe.head_learning_rate))
    return backbone, network, groups


@dataclass(frozen=True)
class FittedMember:
    """A trained member.

    Args:
        recipe: kind of member.
        options: as configured.
        seed: it was trained with.
        source: the backbone that ``values`` change.
        values: trained parameters by name, on the CPU.
        report: what was done, with seconds: the one file that differs between runs.
        device: where it predicts.
    """

    recipe: Recipe
    options: Mapping[str, Any]
    seed: int
    source: BackboneSource
    values: Mapping[str, Tensor]
    report: Mapping[str, Any]
    device: str = "cpu"

    def save(self, directory: Path) -> None:
        """Write the trained parameters (those only), options and report into ``directory``."""
        save_fit(
            directory,
            self.recipe.kind,
            self.seed,
            self.source,
            self.options,
            self.values,
            self.report,
            file=_FILE,
            schema=_SCHEMA,
        )

    def network(self) -> tuple[TrainableBackbone, GaussianForces]:
        """Return the trained network with its adapters merged into the weights."""
        backbone, network, groups = build(self.source, self.recipe, self.seed, self.device)
        with torch.no_grad():
            for group in groups:
                for name, parameter in group.parameters.items():
                    parameter.copy_(self.values[name])
        merge(network)
        return backbone, network.requires_grad_(False)

    def predict(
        self,
        feature_dirs: Sequence[Path],  # noqa: ARG002 - a fine-tuned backbone's features are others than the cached
        structures: Sequence[StructurePart] = (),
        max_atoms: int = 2048,
    ) -> Iterator[PredictionBlock]:
        """Yield mean (ZBL added back), floor (the predicted variances, diagonal) and no spread of every atom.

        Args:
            feature_dirs: not used.
            structures: the parts.
            max_atoms: in a forward pass, at most (a larger structure goes alone).

        Raises:
            DataError: no parts, or structures that cannot be read.
        """
        backbone, network = self.network()
        scale = backbone.force_scale
        for batch in structure_batches(self.source, self.recipe.kind, structures, max_atoms):
            with torch.no_grad():
                force, log_variance = network(batch.graph)
                mean = (force.double() + backbone.zbl(batch.graph).double()).cpu().numpy()
                variance = (log_variance.double().exp() * scale**2).cpu().numpy()
            floor = pack_symmetric(variance[:, :, None] * np.eye(3))
            yield batch.block(mean, floor, np.zeros_like(floor))


def fit_member(
    data: TrainingData,
    recipe: Recipe,
    options: Mapping[str, Any],
    seed: int,
    checkpoints: Path,
    *,
    batch_structures: int,
    settings: TrainingSettings,
    device: str,
    precision: Precision = 32,
) -> FittedMember:
    """Train one member on the Gaussian negative log-likelihood (Appendix B).

    Args:
        data: the structures and the backbone; the feature caches are not used.
        recipe: kind of member.
        options: as configured, for the files.
        seed: of everything random.
        checkpoints: directory of the checkpoint.
        batch_structures: structures in a batch.
        settings: how long.
        device: where.
        precision: of the training passes.

    Raises:
        ConfigurationError: no backbone in ``data``, one that cannot be fine-tuned, or no GPU for ``cuda``.
        FitError: no structures, or a loss that is not finite.
        DataError: files that cannot be read.
    """
    if data.backbone is None:
        raise ConfigurationError(f"a fit of kind {recipe.kind!r} needs the backbone itself, not only its features")
    source = data.backbone
    check_device(device)
    processes = Processes(device, precision)
    backbone, network, groups = build(source, recipe, seed, device)
    training = frames_of(backbone, source, data.train_structures, batch_structures)
    validation = frames_of(backbone, source, data.validation_structures, batch_structures)
    key = key_of(
        recipe,
        seed,
        batch_structures,
        precision,
        settings.patience,
        sorted(source.options.items()),
        file_digest(source.weights),
        training.digests(),
        validation.digests(),
    )
    trained = train(
        groups, network.nll, training, validation, settings, seed, key, checkpoints / "member.pt", processes
    )
    report = {
        "options": dict(options),
        "structures": training.n_structures,
        "atoms": training.n_atoms,
        "parameters": {**counts_of(groups), "backbone": _backbone_size(backbone)},
        "passes": {"backbone": 1, "head": 1},
        "seconds": {"training": trained.seconds},
        "training": trace_of(trained),
        "processes": processes.usage(),
    }
    return FittedMember(recipe, options, seed, source, values_of(groups), report, device)


def _backbone_size(backbone: TrainableBackbone) -> int:
    adapters = {"lora_a", "lora_b"}
    named = backbone.model.named_parameters()
    return sum(parameter.numel() for name, parameter in named if name.rpartition(".")[2] not in adapters)


def load_member(
    directory: Path, recipe: Recipe, saved: Mapping[str, Any], source: BackboneSource | None, device: str
) -> FittedMember:
    """Read what ``FittedMember.save`` wrote.

    Raises:
        ConfigurationError: no backbone is given.
        DataError: a file is missing or damaged, or the backbone has other weights than it was fitted to.
    """
    backbone = check_backbone(directory, recipe.kind, saved, source)
    groups = build(backbone, recipe, saved["seed"], "cpu")[2]
    expected = {name: value for group in groups for name, value in group.parameters.items()}
    values = read_values(directory / _FILE, expected)
    report = read_json(directory / "report.json")
    return FittedMember(recipe, saved["options"], saved["seed"], backbone, values, report, device)
