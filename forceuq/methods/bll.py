"""The Bayesian last layer: exact Bayesian inference over the weights of the last force layer."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from forceuq.errors import ConfigurationError, DataError
from forceuq.files import read_json, whole_file, write_json
from forceuq.methods import BackboneSource, StructurePart, TrainingData
from forceuq.methods._saved import read_saved, refuse_other_settings
from forceuq.predictions import PredictionBlock, pack_symmetric

if TYPE_CHECKING:
    from forceuq.backbones.head import ForceHead
    from forceuq.bll.evidence import EvidenceFit
    from forceuq.bll.posterior import Posterior
    from forceuq.bll.training import TrainedProjection
    from forceuq.features.cache import FeatureReader

_LOGGER = logging.getLogger(__name__)
_LEARNED = "bll-learned-hyperparameters"
_PROJECTION = "projection.safetensors"


class Options(BaseModel):
    """Settings of a Bayesian last layer: where its features come from, and its hyperparameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    projection: Literal["pretrained", "mse", "nlml"] = Field(
        default="nlml",
        description="The layer that makes the last layer's features: as the backbone has it, trained on the"
        " force error, or trained on the minibatch evidence (the paper's).",
    )
    hyperparameters: Literal["evidence", "nlml"] = Field(
        default="evidence",
        description="Prior precisions and Sigma_e: maximising the evidence of all training atoms, or as learned"
        " along with projection nlml (the paper's).",
    )
    prior: Literal["diagonal", "isotropic"] = Field(
        default="diagonal",
        description="A precision for each feature (the paper's), or one for all, as weight decay has it. One needs"
        " hyperparameters evidence.",
    )
    homoscedastic: bool = Field(
        default=False,
        description="Leave the posterior's variance out of the predictions (u = 0): the same mean, the same"
        " covariance Sigma_e for every atom. A baseline.",
    )
    width: int | None = Field(
        default=None,
        ge=1,
        description="Features of a fresh projection layer; null starts from the backbone's own.",
    )
    learning_rate: float = Field(default=1e-3, gt=0.0, description="Adam's learning rate.")
    batch_structures: int = Field(default=64, ge=1, description="Structures in a batch, at most.")
    patience: int = Field(default=10, ge=1, description="Epochs without a lower validation loss before training stops.")
    max_epochs: int = Field(default=1000, ge=1, description="Epochs of training, at most.")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="Where the projection is trained.")
    features_gib: float | None = Field(
        default=None,
        gt=0.0,
        description="Node features held while training, GiB: in the GPU's memory with device cuda, else in the node's."
        " What does not fit is read anew every epoch, and shuffled within pools of that size. null: 0.6 of a GPU's"
        " memory, else 0.75.",
    )

    @model_validator(mode="after")
    def _possible(self) -> "Options":
        if self.hyperparameters == "nlml" and self.projection != "nlml":
            raise ValueError(
                f"hyperparameters 'nlml' are learned with projection 'nlml', not '{self.projection}':"
                " use hyperparameters 'evidence'"
            )
        if self.prior == "isotropic" and self.hyperparameters == "nlml":
            raise ValueError(
                "projection 'nlml' learns a precision for each feature: use hyperparameters 'evidence' with prior"
                " 'isotropic'"
            )
        if self.width is not None and self.projection == "pretrained":
            raise ValueError("a fresh layer (width) must be trained: projection 'pretrained' has the backbone's")
        return self


# All others shape the projection.
REUSES = {"bll": frozenset(Options.model_fields) - {"hyperparameters", "prior", "homoscedastic", "device"}}


@dataclass(frozen=True)
class _Learned:
    """Hyperparameters learned with the projection: lambda (D,) and Sigma_e (K, K)."""

    precision: NDArray[np.float64]
    noise: NDArray[np.float64]


@dataclass(frozen=True)
class FittedBLL:
    """A fitted Bayesian last layer.

    Args:
        options: it was fitted with.
        head: its hidden layers make the features, its last layer is the posterior mean.
        posterior: over the last layer.
        learned: hyperparameters learned by ``nlml``, used or not, for a fit that starts from this one.
        report: what was done, with seconds: the one file that differs between runs.
    """

    options: Options
    head: "ForceHead"
    posterior: "Posterior"
    learned: _Learned | None
    report: dict[str, Any]

    def save(self, directory: Path) -> None:
        """Write posterior, projection, options and report into ``directory``."""
        from safetensors.numpy import save_file

        directory.mkdir(parents=True, exist_ok=True)
        self.head.save(directory / _PROJECTION)
        self.posterior.save(directory / "posterior.safetensors")
        if self.learned is not None:
            tensors = {"precision": self.learned.precision, "noise": self.learned.noise}
            with whole_file(directory / "learned.safetensors") as temporary:
                save_file(tensors, temporary, metadata={"forceuq": _LEARNED})
        write_json(directory / "report.json", self.report)
        # Last: load needs it, so a directory with it is whole.
        write_json(directory / "options.json", {"kind": "bll", **self.options.model_dump(mode="json")})

    def predict(
        self, feature_dirs: Sequence[Path], structures: Sequence[StructurePart] = ()
    ) -> Iterator[PredictionBlock]:
        """Yield mean (ZBL added back), floor Sigma_e and spread u Sigma_e (eq. 8) of every atom.

        A homoscedastic fit has u = 0.

        Raises:
            DataError: a cache that is damaged, or of another width than the projection takes.
        """
        from forceuq.bll.batches import check_width
        from forceuq.features.cache import FeatureReader

        reader = FeatureReader(feature_dirs)
        check_width((reader,), self.head)
        sigma = pack_symmetric(self.posterior.noise)
        for block in reader.blocks():
            phi = self.head.penultimate(block.features)
            u = np.zeros(len(block)) if self.options.homoscedastic else self.posterior.variance_factor(phi)
            yield PredictionBlock(
                structure=block.structure,
                atom=block.atom,
                number=block.number,
                part=np.full(len(block), block.part_index, dtype=np.int16),
                target=block.force,
                mean=self.posterior.predict(phi) + block.zbl,
                floor=np.broadcast_to(sigma, (len(block), 6)),
                spread=u[:, None] * sigma,
            )


def fit(
    data: TrainingData, options: Options, seed: int, checkpoints: Path, starts_from: Path | None = None
) -> FittedBLL:
    """Fit a Bayesian last layer: its projection, its hyperparameters, then the full data's posterior (eq. 5).

    The model has no intercept and no sum rule, as the paper's (eq. 1): of the head only the hidden layers are
    used. Targets are forces less what the backbone adds after its head (ZBL).

    Args:
        data: feature caches and force head.
        options: settings.
        seed: of the training of the projection; nothing else is random.
        checkpoints: directory for the training's checkpoint.
        starts_from: directory of another BLL fit with the same training of the projection, which is then
            reused instead of trained again.

    Raises:
        FitError: training or evidence failed, and why.
        DataError: damaged or mismatched caches.
        ConfigurationError: ``starts_from`` was trained otherwise, or there is no GPU for ``device: cuda``.
    """
    from forceuq.backbones.head import ForceHead
    from forceuq.bll.batches import check_width
    from forceuq.bll.evidence import effective_parameters, fit_evidence, nlml, noise_parameters
    from forceuq.bll.posterior import Posterior
    from forceuq.bll.summary import merge_shards, summarise
    from forceuq.features.cache import FeatureReader

    reader = FeatureReader(data.train)
    head = ForceHead.load(data.head)
    seconds: dict[str, float] = {}
    report: dict[str, Any] = {
        "options": options.model_dump(mode="json"),
        "atoms": reader.n_atoms,
        "structures": reader.n_structures,
        "passes": {"backbone": 1, "head": 1},
        "seconds": seconds,
    }
    learned: _Learned | None = None
    if starts_from is not None:
        head, learned = _reuse(starts_from, options)
        report["projection"] = {"reused": True}
        seconds["projection"] = 0.0
    elif options.projection != "pretrained":
        trained = _train(reader, FeatureReader(data.validation), head, options, seed, checkpoints)
        head = trained.head
        if trained.precision is not None and trained.noise is not None:
            learned = _Learned(trained.precision, trained.noise)
        seconds["projection"] = trained.seconds
        report["projection"] = {
            "epochs": trained.epochs,
            "best_epoch": trained.best_epoch,
            "stopped": trained.stopped,
            "trace": [list(entry) for entry in trained.trace],
        }
    check_width((reader,), head)

    began = time.perf_counter()
    if data.statistics:
        file = data.head if starts_from is None else starts_from / _PROJECTION
        statistics = merge_shards(data.statistics, data.train, file)
        report["statistics"] = {"shards": len(data.statistics)}
    else:
        statistics = summarise(reader, head)
    seconds["statistics"] = time.perf_counter() - began

    began = time.perf_counter()
    if options.hyperparameters == "evidence":
        found = fit_evidence(statistics, isotropic=options.prior == "isotropic")
        precision, noise = found.precision, found.noise
        report["evidence"] = _evidence_report(found)
        _LOGGER.info("evidence: NLML %.6g after %d evaluations", found.nlml, found.evaluations)
    else:
        if learned is None:
            raise DataError("no learned hyperparameters: fit it again", file=starts_from)
        precision, noise = learned.precision, learned.noise
        value, _, _ = nlml(statistics, np.log(precision), noise_parameters(noise))
        report["evidence"] = {
            "nlml": value,
            "effective_parameters": effective_parameters(statistics, precision),
        }
    posterior = Posterior.from_statistics(statistics, precision, noise)
    seconds["hyperparameters"] = time.perf_counter() - began
    report["features"] = statistics.width
    report["parameters"] = _parameters(head, options)
    report["sigma_e"] = noise.tolist()
    return FittedBLL(options, _with_mean(head, posterior), posterior, learned, report)


def head_before_fit(options: Options, head: Path, starts_from: Path | None) -> Path | None:
    """Return the file of the head that makes the features, where that is there before the fit; else None."""
    if starts_from is not None:
        return starts_from / _PROJECTION
    return head if options.projection == "pretrained" else None


def summarise_shard(features: Path, head: Path, output: Path) -> None:
    """Write the statistics of one shard's features under a head: a fit's ``statistics``."""
    from forceuq.bll import summary

    summary.summarise_shard(features, head, output)


def load(directory: Path, backbone: BackboneSource | None = None) -> FittedBLL:
    """Read what ``FittedBLL.save`` wrote.

    Raises:
        DataError: a file is missing or damaged.
    """
    from forceuq.backbones.head import ForceHead
    from forceuq.bll.posterior import Posterior

    return FittedBLL(
        _read_options(directory),
        ForceHead.load(directory / _PROJECTION),
        Posterior.load(directory / "posterior.safetensors"),
        _load_learned(directory),
        read_json(directory / "report.json"),
    )


def _read_options(directory: Path) -> Options:
    values = read_saved(directory, "bll")
    try:
        return Options(**{name: value for name, value in values.items() if name != "kind"})
    except ValidationError as error:
        raise DataError(f"not options of a BLL fit ({error}): fit it again", file=directory / "options.json") from error


def _load_learned(directory: Path) -> _Learned | None:
    from forceuq.bll.tensors import load_tensors

    path = directory / "learned.safetensors"
    if not path.exists():
        return None
    return _Learned(**load_tensors(path, _LEARNED, ("precision", "noise")))


def _reuse(directory: Path, options: Options) -> "tuple[ForceHead, _Learned | None]":
    from forceuq.backbones.head import ForceHead

    refuse_other_settings(directory, _read_options(directory), options, REUSES["bll"])
    return ForceHead.load(directory / _PROJECTION), _load_learned(directory)


def _train(
    train: "FeatureReader",
    validation: "FeatureReader",
    head: "ForceHead",
    options: Options,
    seed: int,
    checkpoints: Path,
) -> "TrainedProjection":
    import torch

    from forceuq.bll.batches import held_bytes
    from forceuq.bll.training import TrainingSettings, train_projection

    if options.projection == "pretrained":
        raise ValueError("a pretrained projection is not trained")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device: cuda, but torch finds no GPU here; use device: cpu")
    settings = TrainingSettings(
        objective=options.projection,
        learning_rate=options.learning_rate,
        batch_structures=options.batch_structures,
        patience=options.patience,
        max_epochs=options.max_epochs,
        width=options.width,
        device=options.device,
        memory_bytes=held_bytes(options.features_gib, options.device),
    )
    return train_projection(train, validation, head, settings, seed, checkpoints)


def _parameters(head: "ForceHead", options: Options) -> dict[str, int]:
    """Count weights: the projection's where it is trained (here, or in the fit that it is from), the last layer's.

    The last layer has D x 3, without bias. Hyperparameters (prior precisions and six numbers of Sigma_e) are not
    counted.
    """
    trained = options.projection != "pretrained"
    projection = sum(np.size(x) for layer in head.weights for x in layer) if trained else 0
    last_layer = 3 * len(head.weights[-1][1])
    return {"projection": projection, "last_layer": last_layer, "trained": projection + last_layer}


def _with_mean(head: "ForceHead", posterior: "Posterior") -> "ForceHead":
    """Return the head whose own force is the posterior mean."""
    from dataclasses import replace

    return replace(
        head,
        out_weight=posterior.mean.T.astype(np.float32),
        out_bias=np.zeros(3, dtype=np.float32),
        mean=np.zeros_like(head.mean),
        std=np.ones_like(head.std),
        remove_mean=False,
        remove_torque=False,
    )


def _evidence_report(found: "EvidenceFit") -> dict[str, Any]:
    return {
        "nlml": found.nlml,
        "effective_parameters": found.effective_parameters,
        "gradient_norm": found.gradient_norm,
        "evaluations": found.evaluations,
        "at_lower": found.at_lower,
        "at_upper": found.at_upper,
        "unused": found.unused,
        "trace": list(found.trace),
    }
