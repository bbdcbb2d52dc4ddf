"""A fine-tuned member of an ensemble: training, what is kept of it, and its predictions. Imports torch."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forceuq.backbones import TrainableBackbone, load_backbone_module
from forceuq.data.splits import read_part
from forceuq.data.structures import read_structures
from forceuq.errors import ConfigurationError, DataError
from forceuq.features.extract import batches
from forceuq.files import file_digest, read_json, whole_file, write_json
from forceuq.finetuning.frames import Frames
from forceuq.finetuning.gaussian import GaussianForces, VarianceStart, renew_last_projection
from forceuq.finetuning.lora import inject, merge
from forceuq.finetuning.training import Group, TrainingSettings, key_of, train
from forceuq.methods import BackboneSource, StructurePart, TrainingData
from forceuq.predictions import PredictionBlock, pack_symmetric

_LOGGER = logging.getLogger(__name__)
_SCHEMA = "finetuned-member"


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


def _backbone(source: BackboneSource, recipe: Recipe, seed: int, device: str) -> TrainableBackbone:
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device: cuda, but torch finds no GPU here; use device: cpu")
    module = load_backbone_module(source.kind)
    options = module.Options(**source.options)
    backbone: Any
    if not (hasattr(module, "collate") and hasattr(module, "untrained")):
        raise ConfigurationError(f"backbones of kind {source.kind!r} cannot be fine-tuned")
    if recipe.scratch:
        backbone = module.untrained(source.weights, options, seed, device)
    else:
        backbone = module.load(source.weights, options, device)
    return backbone  # type: ignore[no-any-return]


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
    backbone = _backbone(source, recipe, seed, device)
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
        from safetensors.torch import save_file

        directory.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.contiguous() for name, value in sorted(self.values.items())}
        with whole_file(directory / "member.safetensors") as temporary:
            save_file(tensors, temporary, metadata={"forceuq": _SCHEMA})
        write_json(directory / "report.json", dict(self.report))
        # Last: load needs it, so a directory with it is whole.
        write_json(
            directory / "options.json",
            {
                "kind": self.recipe.kind,
                "seed": self.seed,
                "weights_sha256": file_digest(self.source.weights),
                "options": dict(self.options),
            },
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
        if not structures:
            raise DataError(f"a fit of kind {self.recipe.kind!r} predicts from structures, and got none")
        backbone, network = self.network()
        module = load_backbone_module(self.source.kind)
        options = module.Options(**self.source.options)
        scale = backbone.force_scale
        for index, part in enumerate(structures):
            rows = read_part(part.splits, part.name)
            for batch in batches(read_structures(part.structures, rows), max_atoms):
                graph = module.graphs([structure for _, structure in batch], options)
                with torch.no_grad():
                    force, log_variance = network(graph)
                    mean = (force.double() + backbone.zbl(graph).double()).cpu().numpy()
                    variance = (log_variance.double().exp() * scale**2).cpu().numpy()
                sizes = [len(structure) for _, structure in batch]
                yield PredictionBlock(
                    structure=np.repeat(np.array([row for row, _ in batch], dtype=np.int64), sizes),
                    atom=np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
                    number=np.concatenate([structure.numbers for _, structure in batch]).astype(np.int16),
                    part=np.full(sum(sizes), index, dtype=np.int16),
                    target=np.concatenate([structure.forces for _, structure in batch]),
                    mean=mean,
                    floor=pack_symmetric(variance[:, :, None] * np.eye(3)),
                    spread=np.zeros((sum(sizes), 6)),
                )


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

    Raises:
        ConfigurationError: no backbone in ``data``, one that cannot be fine-tuned, or no GPU for ``cuda``.
        FitError: no structures, or a loss that is not finite.
        DataError: files that cannot be read.
    """
    if data.backbone is None:
        raise ConfigurationError(f"a fit of kind {recipe.kind!r} needs the backbone itself, not only its features")
    source = data.backbone
    backbone, network, groups = build(source, recipe, seed, device)
    module = load_backbone_module(source.kind)
    graph_options = module.Options(**source.options)

    def frames(parts: Sequence[StructurePart]) -> Frames:
        return Frames(
            parts,
            lambda structures: module.graphs(structures, graph_options),
            lambda graphs: module.collate(graphs, graph_options),
            backbone.zbl,
            batch_structures,
        )

    training, validation = frames(data.train_structures), frames(data.validation_structures)
    key = key_of(
        recipe,
        seed,
        batch_structures,
        settings.patience,
        sorted(source.options.items()),
        file_digest(source.weights),
        training.digests(),
        validation.digests(),
    )
    trained = train(groups, network.nll, training, validation, settings, seed, key, checkpoints / "member.pt")
    counts = {group.name: _count(group.parameters.values()) for group in groups}
    report = {
        "options": dict(options),
        "structures": training.n_structures,
        "atoms": training.n_atoms,
        "parameters": {**counts, "trained": sum(counts.values()), "backbone": _backbone_size(backbone)},
        "seconds": {"training": trained.seconds},
        "training": {
            "epochs": trained.epochs,
            "best_epoch": trained.best_epoch,
            "stopped": trained.stopped,
            "trace": [list(entry) for entry in trained.trace],
        },
    }
    values = {
        name: parameter.detach().cpu().clone() for group in groups for name, parameter in group.parameters.items()
    }
    return FittedMember(recipe, options, seed, source, values, report, device)


def _count(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _backbone_size(backbone: TrainableBackbone) -> int:
    adapters = {"lora_a", "lora_b"}
    named = backbone.model.named_parameters()
    return _count(parameter for name, parameter in named if name.rpartition(".")[2] not in adapters)


def load_member(
    directory: Path, recipe: Recipe, saved: Mapping[str, Any], source: BackboneSource | None, device: str
) -> FittedMember:
    """Read what ``FittedMember.save`` wrote.

    Raises:
        ConfigurationError: no backbone is given.
        DataError: a file is missing or damaged, or the backbone has other weights than it was fitted to.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if source is None:
        raise ConfigurationError(f"{directory}: a fit of kind {recipe.kind!r} is loaded with its backbone")
    if file_digest(source.weights) != saved["weights_sha256"]:
        raise DataError(f"is not the backbone that {directory} was fitted to: fit it again", file=source.weights)
    path = directory / "member.safetensors"
    try:
        values = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot be read ({error}): fit it again", file=path) from error
    groups = build(source, recipe, saved["seed"], "cpu")[2]
    expected = {name: tuple(value.shape) for group in groups for name, value in group.parameters.items()}
    if expected != {name: tuple(value.shape) for name, value in values.items()}:
        raise DataError("holds other parameters than its options say: fit it again", file=path)
    return FittedMember(
        recipe, saved["options"], saved["seed"], source, values, read_json(directory / "report.json"), device
    )
