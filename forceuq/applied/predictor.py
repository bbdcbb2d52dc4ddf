"""Forces with uncertainties of any structures, by a method of a finished run."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forceuq.applied.chosen import Chosen, Member
from forceuq.data.frames import FrameError, structure_of
from forceuq.data.splits import write_splits
from forceuq.data.structure_faults import fault
from forceuq.data.structures import Structure, StructureWriter
from forceuq.errors import ConfigurationError, DataError
from forceuq.methods import FittedMethod, StructurePart, load_method, needs_structures
from forceuq.predictions import PredictionBlock, read_predictions, unpack_symmetric, write_predictions

_PART = "all"
_MAX_EDGES = 1_000_000


@dataclass(frozen=True)
class ForcePrediction:
    """What is predicted of one structure of n atoms.

    Args:
        forces: (n, 3) eV/Å.
        floor: (n, 3, 3) covariance that does not depend on the input, calibrated, (eV/Å)².
        spread: (n, 3, 3) covariance that does, likewise.
        rank: (n,) share of the run's validation atoms whose ``std`` is smaller: near 1 the method is less certain
            than it was of almost anything that it was calibrated on.
    """

    forces: NDArray[np.float64]
    floor: NDArray[np.float64]
    spread: NDArray[np.float64]
    rank: NDArray[np.float64]

    @property
    def covariance(self) -> NDArray[np.float64]:
        """(n, 3, 3) predictive covariance of each atom's force (eq. 12), (eV/Å)²."""
        return self.floor + self.spread

    @property
    def std(self) -> NDArray[np.float64]:
        """(n,) root of the mean variance of a force's components, the same in any orientation, eV/Å."""
        return _deviation(self.covariance)

    @property
    def component_std(self) -> NDArray[np.float64]:
        """(n, 3) of each force's components, eV/Å."""
        return np.sqrt(np.maximum(np.diagonal(self.covariance, axis1=1, axis2=2), 0.0))

    @property
    def correlation(self) -> NDArray[np.float64]:
        """(n, 3) of each force's components yz, xz and xy; 0 with a component whose variance is 0."""
        scale = self.component_std[:, [1, 0, 0]] * self.component_std[:, [2, 2, 1]]
        covariance = self.covariance[:, [1, 0, 0], [2, 2, 1]]
        return np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0.0)


class Predictor:
    """A method of a run that predicts: its fits, the backbone and a calibration, in memory.

    Args:
        chosen: the method.
        device: where the backbone makes features: cpu, cuda, or auto. Kinds that change the backbone run where they
            were fitted.
        max_atoms: in a pass of the backbone, at most (a larger structure goes alone).

    Raises:
        ConfigurationError: another device, or there is no GPU for ``cuda``.
        DataError: a fit or weights that cannot be read.
    """

    def __init__(self, chosen: Chosen, device: str = "auto", max_atoms: int = 2048) -> None:
        # Of several GPUs one is chosen by CUDA_VISIBLE_DEVICES: what waits for a GPU waits for the current one.
        if device not in ("auto", "cpu", "cuda"):
            raise ConfigurationError(f"device: {device!r} is not valid; valid: cpu, cuda, auto")
        import torch

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigurationError("device: cuda, but torch finds no GPU here; use device: cpu")
        self.chosen = chosen
        self._device, self._max_atoms = device, max_atoms
        self._fits = [_load(member) for member in chosen.members]
        of_features = [member for member in chosen.members if not needs_structures(member.kind)]
        self._features = _Features(of_features[0], device, max_atoms) if of_features else None

    def predict(self, structures: Sequence[Structure]) -> list[ForcePrediction]:
        """Return the predictions of structures, whose own forces count for nothing.

        They depend on what else is in a pass of the backbone by float32's rounding only. Methods that draw at random
        (BLIP) draw the same for the same id.

        Args:
            structures: each with an id of its own.

        Raises:
            DataError: a structure that is damaged, or cannot be predicted, by its id.
        """
        if not structures:
            return []
        seen: set[str] = set()
        for each in structures:
            reason = fault(each) or ("another structure has this id" if each.structure_id in seen else None)
            if reason is not None:
                raise DataError(f"cannot be predicted: {reason}", record=each.structure_id)
            seen.add(each.structure_id)
        with tempfile.TemporaryDirectory(prefix="forceuq-") as folder:
            blocks = list(self._blocks(Path(folder), structures))
        names = ("mean", "floor", "spread")
        mean, floor, spread = (np.concatenate([getattr(block, name) for block in blocks]) for name in names)
        a, b = self.chosen.factors
        floors, spreads = a * unpack_symmetric(floor), b * unpack_symmetric(spread)
        ranks = self._ranks(_deviation(floors + spreads))
        ends = np.cumsum([len(each) for each in structures])[:-1]
        parts = (np.split(values, ends) for values in (mean, floors, spreads, ranks))
        return [ForcePrediction(*each) for each in zip(*parts, strict=True)]

    @cached_property
    def validation_std(self) -> NDArray[np.float64]:
        """(N,) ``std`` of the run's validation atoms under the same calibration, sorted."""
        a, b = self.chosen.factors
        found = [
            _deviation(a * unpack_symmetric(block.floor) + b * unpack_symmetric(block.spread))
            for block in read_predictions(self.chosen.validation)
        ]
        return np.sort(np.concatenate(found))

    def _ranks(self, std: NDArray[np.float64]) -> NDArray[np.float64]:
        # The middle of equal ones: where all atoms have one covariance each is as uncertain as half of them.
        below, up_to = (np.searchsorted(self.validation_std, std, side) for side in ("left", "right"))
        ranks: NDArray[np.float64] = (below + up_to) / (2.0 * len(self.validation_std))
        return ranks

    def _blocks(self, folder: Path, structures: Sequence[Structure]) -> Iterator[PredictionBlock]:
        own = any(needs_structures(member.kind) for member in self.chosen.members)
        parts = (_written(folder, structures),) if own else ()
        features = () if self._features is None else (self._features.cache(folder / "features", structures),)
        members = [fit.predict(features, parts) for fit in self._fits]
        if self.chosen.combination is None:
            yield from members[0]
            return
        files = [folder / f"member-{index}.parquet" for index in range(len(members))]
        for file, blocks in zip(files, members, strict=True):
            write_predictions(file, blocks, {})
        kind, options = self.chosen.combination
        method: Any = load_method(kind)
        yield from method.combine(files, method.Options(**options))


class _Features:
    """The backbone, loaded once, and the caches of features that it makes."""

    def __init__(self, member: Member, device: str, max_atoms: int) -> None:
        from forceuq.backbones import load_backbone_module
        from forceuq.features.layout import FeatureMetadata

        source = member.backbone
        module = load_backbone_module(source.kind)
        self._kind, self._settings = source.kind, module.Options(**source.options)
        self._backbone = module.load(source.weights, self._settings, device)
        self._device, self._max_atoms = device, max_atoms
        self._metadata = FeatureMetadata(
            width=self._backbone.node_dim,
            backbone=source.kind,
            backbone_version=self._backbone.version,
            weights_sha256="",
            dataset="",
            part=_PART,
            shard=0,
            shards=1,
            precision=member.precision,
        )

    def cache(self, output: Path, structures: Sequence[Structure]) -> Path:
        """Write the features of structures as methods read them; return the folder."""
        import torch

        from forceuq.features.cache import FeatureWriter
        from forceuq.features.forward import Extraction, Forward
        from forceuq.features.graphs import batches, graph_builder

        done = Extraction(self._device, self._max_atoms)
        with (
            FeatureWriter(output, self._metadata) as writer,
            torch.inference_mode(),
            graph_builder(self._kind, self._settings, _MAX_EDGES, 0) as builder,
        ):
            work = batches(iter(enumerate(structures)), self._max_atoms)
            try:
                for batch, features, zbl in Forward(self._backbone, builder, self._device, done).all(work):
                    sizes = [len(each) for _, each in batch]
                    writer.add(
                        np.repeat([row for row, _ in batch], sizes),
                        np.concatenate([np.arange(size) for size in sizes]),
                        np.concatenate([each.numbers for _, each in batch]),
                        np.concatenate([each.forces for _, each in batch]),
                        zbl,
                        features,
                    )
            except DataError as error:
                if isinstance(error.record, int):  # a row: of these structures, not of a file that anyone knows
                    raise DataError(str(error), record=structures[error.record].structure_id) from error
                raise
        return output


def unlabelled(atoms: Any, structure_id: str) -> Structure:
    """Return ASE atoms as a structure to predict: its forces are zeros, whatever the atoms have.

    Raises:
        DataError: they are periodic along some directions only, or a frame that could not be read.
    """
    try:
        if not isinstance(atoms, FrameError):
            atoms = atoms.copy()
            atoms.arrays["forces"] = np.zeros((len(atoms), 3))
        return structure_of(atoms, structure_id, structure_id)
    except FrameError as error:
        raise DataError(f"cannot be predicted: {error}", record=structure_id) from error


def _load(member: Member) -> FittedMethod:
    source = member.backbone if needs_structures(member.kind) else None
    return load_method(member.kind).load(member.folder, source)


def _written(folder: Path, structures: Sequence[Structure]) -> StructurePart:
    names = [each.structure_id for each in structures]
    with StructureWriter(folder / "structures.parquet", max_bad_fraction=0.0) as writer:
        for each in structures:
            writer.add(each)
    write_splits(folder / "splits.parquet", names, np.arange(len(names)), [_PART] * len(names), expected=(_PART,))
    return StructurePart(folder / "structures.parquet", folder / "splits.parquet", _PART)


def _deviation(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    # A spread of float32 rounding may lie a hair under zero, as in forceuq.metrics.
    variance = np.maximum(np.einsum("...ii->...", covariance), 0.0)
    deviation: NDArray[np.float64] = np.sqrt(variance / 3.0)
    return deviation
