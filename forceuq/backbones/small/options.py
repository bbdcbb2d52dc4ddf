"""Settings of the training of forceuq-small, apart from its code so that a configuration is checked in no time."""

from pydantic import BaseModel, ConfigDict, Field

from forceuq.backbones.small.training_data import FrameOptions


class Options(BaseModel):
    """Training of forceuq-small: its frames and its optimiser."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    frames: FrameOptions = Field(default=FrameOptions(), description="What it is trained on.")
    epochs: int = Field(default=40, ge=1, description="Passes over the training frames.")
    batch_structures: int = Field(default=32, ge=1, description="Frames in a batch.")
    learning_rate: float = Field(default=2e-3, gt=0, description="Adam's learning rate at its highest.")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="Share of the steps while it rises; then it falls.")
    weight_decay: float = Field(default=1e-4, ge=0, description="Decoupled weight decay.")
    clip: float = Field(default=1.0, gt=0, description="Largest norm of the gradient.")
    average: float = Field(default=0.998, gt=0, lt=1, description="Decay of the moving average of the weights.")
    seed: int = Field(default=0, ge=0, description="Of the first weights, the order and the rotations.")
    threads: int = Field(
        default=2, ge=1, description="Of PyTorch. Part of the result: sums are split among them, so bits differ."
    )
