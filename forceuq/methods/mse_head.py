"""The backbone's force head trained on the force error: SWAG's first stage by itself, a baseline."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from forceuq.errors import ConfigurationError
from forceuq.methods import BackboneSource, StructurePart, TrainingData
from forceuq.methods._saved import options_and_seed, write_saved
from forceuq.predictions import PredictionBlock, pack_symmetric

if TYPE_CHECKING:
    from forceuq.backbones.head import ForceHead
    from forceuq.force_head.training import HeadSettings, TrainedHead


_ADAM = "head-training-adam"


class Options(BaseModel):
    """Settings of the training of a force head; the defaults are the paper's for SWAG (Appendix B)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(default=1e-3, gt=0.0, description="Adam's learning rate.")
    batch_structures: int = Field(default=64, ge=1, description="Structures in a batch, at most.")
    patience: int = Field(default=10, ge=1, description="Epochs without a lower validation loss before training stops.")
    max_epochs: int = Field(default=1000, ge=1, description="Epochs of training, at most.")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="Where the head is trained.")
    features_gib: float | None = Field(
        default=None,
        gt=0.0,
        description="Node features held while training, GiB: in the GPU's memory with device cuda, else in the node's."
        " What does not fit is read anew every epoch, and shuffled within pools of that size. null: 0.6 of a GPU's"
        " memory, else 0.75.",
    )

    def head_settings(self) -> "HeadSettings":
        """Return them as the training takes them."""
        from forceuq.bll.batches import held_bytes
        from forceuq.force_head.training import HeadSettings

        return HeadSettings(
            learning_rate=self.learning_rate,
            batch_structures=self.batch_structures,
            patience=self.patience,
            max_epochs=self.max_epochs,
            device=self.device,
            memory_bytes=held_bytes(self.features_gib, self.device),
        )


@dataclass(frozen=True)
class FittedHead:
    """A trained force head with a constant covariance.

    Args:
        options: it was fitted with.
        seed: likewise.
        head: its ``forces`` are the predictions, before ZBL.
        noise: (3, 3) covariance of the training residuals, (eV/Å)².
        adam: the optimiser's state at the best epoch, for SWAG to go on with.
        report: what was done, with seconds: the one file that differs between runs.
    """

    options: Options
    seed: int
    head: "ForceHead"
    noise: NDArray[np.float64]
    adam: Mapping[str, NDArray[np.float32]]
    report: dict[str, Any]

    def save(self, directory: Path) -> None:
        """Write head, covariance, the optimiser's state, options and report into ``directory``."""
        from safetensors.numpy import save_file

        from forceuq.files import whole_file, write_json
        from forceuq.force_head.residuals import save_noise

        directory.mkdir(parents=True, exist_ok=True)
        self.head.save(directory / "head.safetensors")
        save_noise(directory, self.noise)
        with whole_file(directory / "adam.safetensors") as temporary:
            save_file(dict(self.adam), temporary, metadata={"forceuq": _ADAM})
        write_json(directory / "report.json", self.report)
        write_saved(directory, "mse_head", self.seed, self.options)

    def predict(
        self, feature_dirs: Sequence[Path], structures: Sequence[StructurePart] = ()
    ) -> Iterator[PredictionBlock]:
        """Yield mean (ZBL added back) and floor of every atom; the spread is zero.

        One covariance for all atoms: nothing is known of any single one. A calibration then has no b to fit.

        Raises:
            DataError: a cache that is damaged, or of another width than the head takes.
        """
        from forceuq.bll.batches import check_width
        from forceuq.features.cache import FeatureReader

        reader = FeatureReader(feature_dirs)
        check_width((reader,), self.head)
        floor = pack_symmetric(self.noise)
        for block in reader.blocks():
            yield PredictionBlock(
                structure=block.structure,
                atom=block.atom,
                number=block.number,
                part=np.full(len(block), block.part_index, dtype=np.int16),
                target=block.force,
                mean=self.head.forces(block.features) + block.zbl,
                floor=np.broadcast_to(floor, (len(block), 6)),
                spread=np.zeros((len(block), 6)),
            )


def fit(
    data: TrainingData, options: Options, seed: int, checkpoints: Path, starts_from: Path | None = None
) -> FittedHead:
    """Train the force head, all its layers, on the mean squared force error; see ``forceuq.force_head.training``.

    Args:
        data: feature caches and force head.
        options: settings.
        seed: of the order of structures; training starts from the backbone's weights, and nothing else is random.
        checkpoints: directory of the training's checkpoint.
        starts_from: must be None.

    Raises:
        ConfigurationError: ``starts_from`` is given, or there is no GPU for ``device: cuda``.
        FitError: no structures, or a loss that is not finite.
        DataError: damaged or mismatched caches.
    """
    import time

    from forceuq.backbones.head import ForceHead
    from forceuq.features.cache import FeatureReader
    from forceuq.force_head.residuals import cached_residuals, residual_covariance
    from forceuq.force_head.training import count_parameters, train_head

    if starts_from is not None:
        raise ConfigurationError("starts_from: the head's training starts from the backbone; drop starts_from")
    reader = FeatureReader(data.train)
    trained = train_head(
        reader,
        FeatureReader(data.validation),
        ForceHead.load(data.head),
        options.head_settings(),
        seed,
        checkpoints,
    )
    began = time.perf_counter()
    noise = residual_covariance(cached_residuals(reader, trained.head.forces))
    report = {
        "options": options.model_dump(mode="json"),
        "atoms": reader.n_atoms,
        "structures": reader.n_structures,
        "parameters": {"trained": count_parameters(trained.head)},
        "passes": {"backbone": 1, "head": 1},
        "seconds": {"training": trained.seconds, "residuals": time.perf_counter() - began},
        "training": training_report(trained),
        "residual_covariance": noise.tolist(),
    }
    return FittedHead(options, seed, trained.head, noise, trained.adam, report)


def training_report(trained: "TrainedHead") -> dict[str, Any]:
    """Return what a report says of the training of a head."""
    return {
        "epochs": trained.epochs,
        "best_epoch": trained.best_epoch,
        "stopped": trained.stopped,
        "trace": [list(entry) for entry in trained.trace],
    }


def load(directory: Path, backbone: BackboneSource | None = None) -> FittedHead:
    """Read what ``FittedHead.save`` wrote.

    Raises:
        DataError: a file is missing or damaged.
        ConfigurationError: the directory is a fit of another kind.
    """
    from forceuq.backbones.head import ForceHead
    from forceuq.bll.tensors import load_tensors
    from forceuq.files import read_json
    from forceuq.force_head.residuals import load_noise

    options, seed = options_and_seed(directory, "mse_head", Options)
    return FittedHead(
        options,
        seed,
        ForceHead.load(directory / "head.safetensors"),
        load_noise(directory),
        load_tensors(directory / "adam.safetensors", _ADAM, ()),
        read_json(directory / "report.json"),
    )
