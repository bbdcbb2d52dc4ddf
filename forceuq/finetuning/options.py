"""Settings that all kinds share whose training runs the backbone itself."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainingOptions(BaseModel):
    """How a network is trained: how long, where, in how many processes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_structures: int = Field(default=64, ge=1, description="Structures in a batch, at most.")
    patience: int = Field(default=10, ge=1, description="Epochs without a lower validation loss before training stops.")
    max_epochs: int = Field(default=1000, ge=1, description="Epochs of training, at most.")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="Where it is trained and predicts.")
    devices: int = Field(
        default=1,
        ge=1,
        description="Processes of one node that share each batch in training, each with a GPU of its own on cuda; the"
        " fit is the same but for the order of sums.",
    )
    precision: Literal[32, "bf16-mixed"] = Field(
        default=32,
        description="Of the matrix products in training: float32, or bfloat16 where autocast thinks it safe;"
        " validation and prediction are in float32.",
    )


class MemberOptions(TrainingOptions):
    """How a member of an ensemble is trained, whichever of its weights are."""

    head_learning_rate: float = Field(default=5e-4, gt=0.0, description="That of force head and variance head.")
    variance_start: Literal["zero", "zero-last"] = Field(
        default="zero",
        description="Variance head: all weights zero (the paper's; the variance is then the same for all atoms,"
        " since no gradient reaches any weight but the last bias), or only the last layer's.",
    )
