"""Fits of variational messages and updates, what is kept of them, and their predictions. Imports torch."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forceuq.backbones import TrainableBackbone
from forceuq.blip.network import ROWS, BlipNetwork, Design
from forceuq.blip.noise import StructureNoise
from forceuq.blip.variational import Rows
from forceuq.errors import ConfigurationError
from forceuq.files import file_digest, read_json
from forceuq.finetuning.frames import Frames
from forceuq.finetuning.processes import Precision, Processes
from forceuq.finetuning.source import check_device, frames_of, load_trainable, structure_batches
from forceuq.finetuning.stored import check_backbone, counts_of, read_values, save_fit, trace_of, values_of
from forceuq.finetuning.training import Group, TrainingSettings, deterministic, key_of, train
from forceuq.force_head.residuals import residual_covariance
from forceuq.methods import BackboneSource, StructurePart, TrainingData
from forceuq.predictions import PredictionBlock, pack_symmetric

_LOGGER = logging.getLogger(__name__)
KIND = "blip"
_FILE = "blip.safetensors"
_SCHEMA = "blip"
_FLOOR = "residual_covariance"
_MAX_ATOMS = 2048
Residuals = Literal["passes", "mean-weights"]


@dataclass(frozen=True)
class Rates:
    """Adam's learning rates of messages and updates (and the rest of the backbone), force head, inference networks."""

    messages: float
    head: float
    inference: float


def build(
    source: BackboneSource, design: Design, rates: Rates, seed: int, device: str
) -> tuple[TrainableBackbone, BlipNetwork, list[Group]]:
    """Return a network before training, with the pretrained weights as theta, and what is trained of it.

    Args:
        source: the backbone.
        design: of the network.
        rates: of learning.
        seed: of the inference networks' weights.
        device: where it runs.

    Raises:
        ConfigurationError: no GPU for ``cuda``, or a backbone that cannot be fine-tuned.
        DataError: weights that cannot be read.
    """
    backbone = load_trainable(source, device)
    # Before the layers are wrapped: names in files are those of the backbone's own weights.
    named = dict(backbone.model.named_parameters())
    prefixes = tuple(f"{name}." for name in backbone.message_mlps())
    head_prefix = f"{backbone.force_mlp()[0]}."
    network = BlipNetwork(backbone, design, seed).eval().requires_grad_(False)
    messages = {name: value for name, value in named.items() if name.startswith(prefixes)}
    head = {name: value for name, value in named.items() if name.startswith(head_prefix)}
    groups = [
        Group("messages", messages, rates.messages),
        Group("force_head", head, rates.head),
        Group(
            "inference",
            {f"inference.{name}": value for name, value in network.inference.named_parameters()},
            rates.inference,
        ),
    ]
    if design.trains == "all":
        rest = {name: value for name, value in named.items() if name not in messages and name not in head}
        groups.append(Group("rest", rest, rates.messages))
    return backbone, network, groups


@dataclass(frozen=True)
class FittedBlip:
    """A fine-tuned backbone with variational messages and updates.

    Args:
        design: of the network.
        rates: it was trained at.
        passes: at prediction.
        options: as configured.
        seed: it was trained with, and of the noise at prediction.
        source: the backbone that ``values`` change.
        values: trained parameters by name, on the CPU.
        floor: (3, 3) covariance of the training residuals, eV²/Å².
        report: what was done, with seconds: the one file that differs between runs.
        device: where it predicts.
    """

    design: Design
    rates: Rates
    passes: int
    options: Mapping[str, Any]
    seed: int
    source: BackboneSource
    values: Mapping[str, Tensor]
    floor: NDArray[np.float64]
    report: Mapping[str, Any]
    device: str = "cpu"

    def save(self, directory: Path) -> None:
        """Write the trained parameters (those only), the floor, options and report into ``directory``."""
        values = {**self.values, _FLOOR: torch.from_numpy(self.floor)}
        save_fit(directory, KIND, self.seed, self.source, self.options, values, self.report, file=_FILE, schema=_SCHEMA)

    def network(self) -> tuple[TrainableBackbone, BlipNetwork]:
        """Return the trained network."""
        backbone, network, groups = build(self.source, self.design, self.rates, self.seed, self.device)
        with torch.no_grad():
            for group in groups:
                for name, parameter in group.parameters.items():
                    parameter.copy_(self.values[name])
        return backbone, network.requires_grad_(False)

    def predict(
        self,
        feature_dirs: Sequence[Path],  # noqa: ARG002 - a fine-tuned backbone's features are others than the cached
        structures: Sequence[StructurePart] = (),
        max_atoms: int = _MAX_ATOMS,
    ) -> Iterator[PredictionBlock]:
        """Yield mean, floor and spread of every atom.

        With forces f_k of K noisy passes: mean = avg f_k (ZBL added back), spread = avg (f_k - mean)(f_k - mean)^T.
        The average is over K, not K - 1, as in ``forceuq.methods.ensemble``: the passes are taken as the mixture
        itself. The floor is the training residuals' covariance, the same for all atoms.

        Args:
            feature_dirs: not used.
            structures: the parts.
            max_atoms: in a forward pass, at most (a larger structure goes alone).

        Raises:
            DataError: no parts, or structures that cannot be read.
        """
        backbone, network = self.network()
        floor = pack_symmetric(self.floor)
        for batch in structure_batches(self.source, KIND, structures, max_atoms):
            ids = [structure.structure_id for structure in batch.structures]
            with torch.no_grad():
                repulsion = backbone.zbl(batch.graph).double()
            forces = (_sample(network, batch.graph, ids, self.seed, self.passes) + repulsion).cpu().numpy()
            mean = forces.mean(axis=0)
            apart = forces - mean
            spread = np.einsum("kni,knj->nij", apart, apart) / len(forces)
            yield batch.block(mean, np.broadcast_to(floor, (len(mean), 6)), pack_symmetric(spread))


def _sample(network: BlipNetwork, graph: Any, ids: Sequence[str], seed: int, passes: int) -> Tensor:
    """Return forces (k, n, 3) float64, eV/Å, before ZBL, of k noisy passes; with weights theta alone where k is 0.

    Args:
        network: the network.
        graph: a batch.
        ids: of its structures.
        seed: of the noise.
        passes: k.
    """
    sizes: dict[Rows, list[int]] = {"nodes": graph.n_node.tolist(), "edges": graph.n_edge.tolist()}
    device = next(network.parameters()).device
    draws = [StructureNoise(ids, sizes, seed, index, device) for index in range(passes)]
    with torch.no_grad(), deterministic():
        forces = network.passes(graph, draws) if draws else network(graph, None)[None]
    return forces.double()


def fit_blip(
    data: TrainingData,
    design: Design,
    rates: Rates,
    options: Mapping[str, Any],
    seed: int,
    checkpoints: Path,
    *,
    passes: int,
    residuals: Residuals,
    batch_structures: int,
    settings: TrainingSettings,
    device: str,
    precision: Precision = 32,
) -> FittedBlip:
    """Train messages, updates, force head and inference networks together on data term plus divergence.

    Args:
        data: the structures and the backbone; the feature caches are not used.
        design: of the network and its objective.
        rates: of learning.
        options: as configured, for the files.
        seed: of everything random.
        checkpoints: directory of the checkpoint.
        passes: at prediction.
        residuals: of what the floor is the covariance: the mean of the passes, or the pass with weights theta.
        batch_structures: structures in a batch.
        settings: how long.
        device: where.
        precision: of the training passes.

    Raises:
        ConfigurationError: no backbone in ``data``, one that cannot be fine-tuned, or no GPU for ``cuda``.
        FitError: no structures, a loss that is not finite, or training residuals without a covariance.
        DataError: files that cannot be read.
    """
    if data.backbone is None:
        raise ConfigurationError(f"a fit of kind {KIND!r} needs the backbone itself, not only its features")
    source = data.backbone
    check_device(device)
    processes = Processes(device, precision)
    backbone, network, groups = build(source, design, rates, seed, device)
    training = frames_of(backbone, source, data.train_structures, batch_structures)
    validation = frames_of(backbone, source, data.validation_structures, batch_structures)
    key = key_of(
        design,
        rates,
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
        groups,
        network.loss,
        training,
        validation,
        settings,
        seed,
        key,
        checkpoints / "blip.pt",
        processes,
        validation_loss=network.validation_loss,
    )
    began = time.perf_counter()
    count = passes if residuals == "passes" else 0
    floor = residual_covariance(_residuals(network, training, seed, count, processes), processes.sums)
    seconds = {"training": trained.seconds, "residuals": time.perf_counter() - began}
    named = backbone.model.named_parameters()
    report = {
        "options": dict(options),
        "structures": training.n_structures,
        "atoms": training.n_atoms,
        "parameters": {**counts_of(groups), "backbone": sum(value.numel() for _, value in named)},
        "passes": {"backbone": passes, "head": passes},
        "seconds": seconds,
        "training": trace_of(trained),
        "processes": processes.usage(),
        **_terms_and_scales(network, validation, seed),
    }
    return FittedBlip(design, rates, passes, options, seed, source, values_of(groups), floor, report, device)


def _residuals(
    network: BlipNetwork, training: Frames, seed: int, passes: int, processes: Processes
) -> Iterator[tuple[NDArray[Any], NDArray[np.float64]]]:
    """Yield structures' ids (n,) and residuals (n, 3) of this process's part of the training atoms."""
    for batch in training.in_order(processes.rank, processes.count):
        if batch.share is not None and not batch.share.counted:
            continue
        force = _sample(network, batch.graph, batch.structure_ids, seed, passes).mean(dim=0)
        ids = np.repeat(np.array(batch.structure_ids), batch.sizes)
        yield ids, (batch.target.double() - force.cpu()).numpy()


def _terms_and_scales(network: BlipNetwork, validation: Frames, seed: int) -> dict[str, Any]:
    """Return the objective's terms and each layer's alpha over the validation structures, for the report."""
    data, kl, atoms = 0.0, 0.0, 0
    counts = dict.fromkeys(ROWS, 0)
    sums: dict[str, Tensor] = {}
    lowest: dict[str, Tensor] = {}
    highest: dict[str, Tensor] = {}
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for batch in validation.in_order():
            terms = network.terms(batch)
            data += float(terms.data) * len(batch.target)
            kl += float(terms.kl) * len(batch.target)
            atoms += len(batch.target)
            for rows, scales in network.scales(batch.graph).items():
                if not len(scales):
                    continue
                found = scales.double().cpu()
                sums[rows] = sums.get(rows, 0.0) + found.sum(dim=0)
                lowest[rows] = torch.minimum(lowest.get(rows, found[0]), found.amin(dim=0))
                highest[rows] = torch.maximum(highest.get(rows, found[0]), found.amax(dim=0))
                counts[rows] += len(found)
    alpha = {
        layer.name: {
            "mean": float(sums[layer.rows][layer.index]) / counts[layer.rows],
            "min": float(lowest[layer.rows][layer.index]),
            "max": float(highest[layer.rows][layer.index]),
        }
        for layer in network.layers
        if counts[layer.rows]
    }
    return {"validation": {"data": data / atoms, "kl": kl / atoms}, "alpha": alpha}


def load_blip(
    directory: Path,
    design: Design,
    rates: Rates,
    saved: Mapping[str, Any],
    source: BackboneSource | None,
    *,
    passes: int,
    device: str,
) -> FittedBlip:
    """Read what ``FittedBlip.save`` wrote.

    Raises:
        ConfigurationError: no backbone is given.
        DataError: a file is missing or damaged, or the backbone has other weights than it was fitted to.
    """
    backbone = check_backbone(directory, KIND, saved, source)
    groups = build(backbone, design, rates, saved["seed"], "cpu")[2]
    expected = {name: value.detach() for group in groups for name, value in group.parameters.items()}
    values = read_values(directory / _FILE, {**expected, _FLOOR: torch.zeros(3, 3)})
    floor = values.pop(_FLOOR).numpy()
    report = read_json(directory / "report.json")
    return FittedBlip(design, rates, passes, saved["options"], saved["seed"], backbone, values, floor, report, device)
