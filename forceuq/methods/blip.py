"""BLIP (our implementation): variational dropout with input-dependent scales in messages and updates.

After Coscia, de Haan and Welling, "BLIPs: Bayesian Learned Interatomic Potentials", arXiv:2508.14022. What is theirs:
the weights of message and update networks are Gaussian with mean theta and variance alpha theta^2; alpha comes from an
inference network that sees initial node features and edge attributes, and is invariant; local reparametrisation; the
loss is a data term plus a scaled divergence from a prior that a dropout probability gives; all weights involved are
trained together. Patience 10 and ten passes are the benchmark paper's. Every other choice is ours, and an option.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from forceuq.finetuning.options import TrainingOptions
from forceuq.methods import BackboneSource, TrainingData
from forceuq.methods._saved import read_saved

if TYPE_CHECKING:
    from forceuq.blip.fitting import FittedBlip, Rates
    from forceuq.blip.network import Design

NEEDS_STRUCTURES = True


class Options(TrainingOptions):
    """Settings of a BLIP; "our choice" marks what the sources that we could read do not fix."""

    prior_probability: float = Field(
        default=0.2,
        gt=0.0,
        lt=1.0,
        description="Dropout probability p of the prior N(0, p / (1 - p) theta^2); the value is our choice.",
    )
    kl_weight: float = Field(
        default=0.1,
        ge=0.0,
        description="Factor of the divergence from the prior, which is averaged over weights and over atoms or"
        " edges; value and averaging are our choice.",
    )
    data_term: Literal["mse", "normalised-mse"] = Field(
        default="mse",
        description="Mean squared error of force components, in (eV/Å)^2 or in units of the backbone's own scale"
        " of forces; our choice.",
    )
    early_stopping: Literal["objective", "data"] = Field(
        default="objective",
        description="What must fall on the validation structures, for one noisy pass with the same random numbers"
        " every epoch: the objective, or its data term only; our choice.",
    )
    scale_per: Literal["layer", "row"] = Field(
        default="layer",
        description="One alpha for each linear layer and atom or edge, or one for each atom or edge, shared by all"
        " layers; our choice.",
    )
    node_inputs: Literal["initial", "environment"] = Field(
        default="initial",
        description="What atoms' scales see: the initial node features (in Orb these know the element only), or"
        " also the sums of the radial attributes of an atom's edges; our choice.",
    )
    link: Literal["softplus", "odds"] = Field(
        default="softplus",
        description="What makes alpha positive: softplus, or the odds p / (1 - p) of p = sigmoid; our choice.",
    )
    inference_layers: int = Field(
        default=2, ge=1, description="Hidden layers (SiLU) of the inference networks; our choice."
    )
    inference_width: int = Field(default=64, ge=1, description="Their width; our choice.")
    initial_scale: float = Field(
        default=0.01, gt=0.0, description="Alpha of every layer at the start of training; our choice."
    )
    epsilon: float = Field(
        default=1e-12,
        ge=0.0,
        description="Added to the variance of a layer's output, against the square root's slope at zero; our choice.",
    )
    trains: Literal["messages", "all"] = Field(
        default="messages",
        description="Trained beside the inference networks: message and update MLPs and the force head, or all of"
        " the backbone; our choice.",
    )
    residuals: Literal["passes", "mean-weights"] = Field(
        default="passes",
        description="The floor is the covariance of the training residuals of the mean of the passes, which is what"
        " is predicted, or of one pass with the mean weights, which costs less; our choice.",
    )
    passes: int = Field(default=10, ge=2, description="Stochastic passes at prediction (the paper's).")
    learning_rate: float = Field(
        default=5e-4, gt=0.0, description="Adam's learning rate of messages and updates; our choice."
    )
    head_learning_rate: float = Field(default=5e-4, gt=0.0, description="That of the force head; our choice.")
    inference_learning_rate: float = Field(
        default=1e-3, gt=0.0, description="That of the inference networks; our choice."
    )
    batch_structures: int = Field(default=64, ge=1, description="Structures in a batch, at most; our choice.")
    patience: int = Field(
        default=10,
        ge=1,
        description="Epochs without a lower validation loss before training stops (the paper's).",
    )
    max_epochs: int = Field(default=1000, ge=1, description="Epochs of training, at most; our choice.")


def _design(options: Options) -> "tuple[Design, Rates]":
    from dataclasses import fields

    from forceuq.blip.fitting import Rates
    from forceuq.blip.network import Design

    chosen: dict[str, Any] = {field.name: getattr(options, field.name) for field in fields(Design)}
    rates = Rates(options.learning_rate, options.head_learning_rate, options.inference_learning_rate)
    return Design(**chosen), rates


def fit(
    data: TrainingData, options: Options, seed: int, checkpoints: Path, starts_from: Path | None = None
) -> "FittedBlip":
    """Fine-tune the backbone; see ``forceuq.blip.fitting.fit_blip``.

    Args:
        data: training and validation structures, and the backbone.
        options: settings.
        seed: of the inference networks' weights, the order of structures, and the noise, at prediction too.
        checkpoints: directory of the training's checkpoint.
        starts_from: must be None.

    Raises:
        ConfigurationError: ``starts_from`` is given, no backbone, or too few GPUs for ``device: cuda``.
        FitError: no structures, a process that died, a loss that is not finite, or residuals without a covariance.
        DataError: files that cannot be read.
    """
    from forceuq.blip.fitting import fit_blip
    from forceuq.errors import ConfigurationError
    from forceuq.finetuning.launch import fit_together
    from forceuq.finetuning.processes import launched
    from forceuq.finetuning.training import TrainingSettings

    if starts_from is not None:
        raise ConfigurationError("starts_from: a BLIP starts from the backbone; drop starts_from")
    saved = options.model_dump(mode="json", exclude={"devices"})
    if options.devices > 1 and not launched():
        together: FittedBlip = fit_together(
            "blip", data, saved, seed, checkpoints, processes=options.devices, device=options.device
        )
        return together
    design, rates = _design(options)
    return fit_blip(
        data,
        design,
        rates,
        saved,
        seed,
        checkpoints,
        passes=options.passes,
        residuals=options.residuals,
        batch_structures=options.batch_structures,
        settings=TrainingSettings(options.patience, options.max_epochs),
        device=options.device,
        precision=options.precision,
    )


def load(directory: Path, backbone: BackboneSource | None = None) -> "FittedBlip":
    """Read what ``FittedBlip.save`` wrote.

    Raises:
        ConfigurationError: no backbone, or a fit of another kind.
        DataError: files that are missing or damaged, or another backbone's weights.
    """
    from forceuq.blip.fitting import load_blip

    saved = read_saved(directory, "blip")
    options = Options(**saved["options"])
    design, rates = _design(options)
    return load_blip(directory, design, rates, saved, backbone, passes=options.passes, device=options.device)
