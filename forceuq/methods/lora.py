"""One member of a LoRA ensemble: low-rank adapters in the message-passing MLPs, and a variance head."""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from forceuq.finetuning.options import MemberOptions
from forceuq.methods import BackboneSource, TrainingData
from forceuq.methods._saved import read_saved

if TYPE_CHECKING:
    from forceuq.finetuning.member import FittedMember, Recipe

NEEDS_STRUCTURES = True


class Options(MemberOptions):
    """Settings of a LoRA member; the defaults are the paper's (Appendix B)."""

    rank: int = Field(default=8, ge=1, description="Rank of the adapters.")
    alpha: float = Field(default=16.0, gt=0.0, description="The adapters' change is scaled by alpha / rank.")
    learning_rate: float = Field(default=1e-3, gt=0.0, description="Adam's learning rate of the adapters.")


def _recipe(options: Options) -> "Recipe":
    from forceuq.finetuning.member import Recipe

    return Recipe(
        kind="lora",
        rank=options.rank,
        alpha=options.alpha,
        scratch=False,
        variance_start=options.variance_start,
        learning_rate=options.learning_rate,
        head_learning_rate=options.head_learning_rate,
    )


def fit(
    data: TrainingData, options: Options, seed: int, checkpoints: Path, starts_from: Path | None = None
) -> "FittedMember":
    """Fit one member; see ``forceuq.finetuning.member.fit_member``.

    Args:
        data: training and validation structures, and the backbone.
        options: settings.
        seed: of the adapters, the force head's new last projection, and the order of structures.
        checkpoints: directory of the training's checkpoint.
        starts_from: must be None.

    Raises:
        ConfigurationError: ``starts_from`` is given, no backbone, or too few GPUs for ``device: cuda``.
        FitError: no structures, a process that died, or a loss that is not finite.
        DataError: files that cannot be read.
    """
    from forceuq.errors import ConfigurationError
    from forceuq.finetuning.launch import fit_together
    from forceuq.finetuning.member import fit_member
    from forceuq.finetuning.processes import launched
    from forceuq.finetuning.training import TrainingSettings

    if starts_from is not None:
        raise ConfigurationError("starts_from: a LoRA member starts from the backbone; drop starts_from")
    saved = options.model_dump(mode="json", exclude={"devices"})
    if options.devices > 1 and not launched():
        together: FittedMember = fit_together(
            "lora", data, saved, seed, checkpoints, processes=options.devices, device=options.device
        )
        return together
    return fit_member(
        data,
        _recipe(options),
        saved,
        seed,
        checkpoints,
        batch_structures=options.batch_structures,
        settings=TrainingSettings(options.patience, options.max_epochs),
        device=options.device,
        precision=options.precision,
    )


def load(directory: Path, backbone: BackboneSource | None = None) -> "FittedMember":
    """Read what ``FittedMember.save`` wrote.

    Raises:
        ConfigurationError: no backbone, or a fit of another kind.
        DataError: files that are missing or damaged, or another backbone's weights.
    """
    from forceuq.finetuning.member import load_member

    saved = read_saved(directory, "lora")
    options = Options(**saved["options"])
    return load_member(directory, _recipe(options), saved, backbone, options.device)
