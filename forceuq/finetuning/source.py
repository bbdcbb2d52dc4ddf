"""A trainable backbone from where it comes, and what is trained on and predicted with it. Imports torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forceuq.backbones import TrainableBackbone, load_backbone_module
from forceuq.data.splits import read_part
from forceuq.data.structures import Structure, read_structures
from forceuq.errors import ConfigurationError, DataError
from forceuq.features.graphs import batches
from forceuq.finetuning.frames import Frames
from forceuq.methods import BackboneSource, StructurePart
from forceuq.predictions import PredictionBlock


def check_device(device: str, devices: int = 1) -> None:
    """Make sure that there are as many GPUs as ``device: cuda`` needs.

    Raises:
        ConfigurationError: there are not.
    """
    if device != "cuda":
        return
    if not torch.cuda.is_available():
        raise ConfigurationError("device: cuda, but torch finds no GPU here; use device: cpu")
    if torch.cuda.device_count() < devices:
        raise ConfigurationError(
            f"devices: {devices} on device: cuda, but torch finds {torch.cuda.device_count()} GPU here; use fewer"
        )


def load_trainable(source: BackboneSource, device: str, untrained_seed: int | None = None) -> TrainableBackbone:
    """Return a backbone that can be trained.

    Args:
        source: where it comes from.
        device: where it runs.
        untrained_seed: of random weights instead of the source's.

    Raises:
        ConfigurationError: no GPU for ``cuda``, or a backbone that cannot be fine-tuned.
        DataError: weights that cannot be read.
    """
    check_device(device)
    module = load_backbone_module(source.kind)
    options = module.Options(**source.options)
    backbone: Any
    if not (hasattr(module, "collate") and hasattr(module, "untrained")):
        raise ConfigurationError(f"backbones of kind {source.kind!r} cannot be fine-tuned")
    if untrained_seed is not None:
        backbone = module.untrained(source.weights, options, untrained_seed, device)
    else:
        backbone = module.load(source.weights, options, device)
    return backbone  # type: ignore[no-any-return]


def frames_of(
    backbone: TrainableBackbone, source: BackboneSource, parts: Sequence[StructurePart], batch_structures: int
) -> Frames:
    """Return the structures of some parts, with targets less what the backbone adds after its head.

    Raises:
        DataError: a part that cannot be read, or has no structures.
        FitError: there are no parts.
    """
    module = load_backbone_module(source.kind)
    options = module.Options(**source.options)
    return Frames(
        parts,
        lambda structures: module.graphs(structures, options),
        lambda graphs: module.collate(graphs, options),
        backbone.zbl,
        batch_structures,
    )


@dataclass(frozen=True)
class StructureBatch:
    """Structures that go through the network together.

    Args:
        rows: of each structure in its file.
        structures: themselves.
        part: index of their part.
        graph: of all, on the CPU.
    """

    rows: Sequence[int]
    structures: Sequence[Structure]
    part: int
    graph: Any

    def block(
        self, mean: NDArray[np.float64], floor: NDArray[np.float64], spread: NDArray[np.float64]
    ) -> PredictionBlock:
        """Return the predictions of these structures' atoms: mean (n, 3), floor and spread (n, 6)."""
        sizes = [len(structure) for structure in self.structures]
        return PredictionBlock(
            structure=np.repeat(np.array(self.rows, dtype=np.int64), sizes),
            atom=np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
            number=np.concatenate([structure.numbers for structure in self.structures]).astype(np.int16),
            part=np.full(sum(sizes), self.part, dtype=np.int16),
            target=np.concatenate([structure.forces for structure in self.structures]),
            mean=mean,
            floor=floor,
            spread=spread,
        )


def structure_batches(
    source: BackboneSource, kind: str, parts: Sequence[StructurePart], max_atoms: int
) -> Iterator[StructureBatch]:
    """Yield all structures of some parts, in order.

    Args:
        source: the backbone whose graphs are made.
        kind: of method, for messages.
        parts: where the structures lie.
        max_atoms: in a batch, at most (a larger structure goes alone).

    Raises:
        DataError: no parts, or structures that cannot be read or have no graphs, by file and id.
    """
    if not parts:
        raise DataError(f"a fit of kind {kind!r} predicts from structures, and got none")
    module = load_backbone_module(source.kind)
    options = module.Options(**source.options)
    for index, part in enumerate(parts):
        rows = read_part(part.splits, part.name)
        for batch in batches(read_structures(part.structures, rows), max_atoms):
            structures = [structure for _, structure in batch]
            try:
                graph = module.graphs(structures, options)
            except DataError as error:
                raise DataError(str(error), file=part.structures) from error
            yield StructureBatch([row for row, _ in batch], structures, index, graph)
