"""The base of the configuration's models, and what an entry may be called."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Names become folder names; anything else would need quoting in a shell.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class Model(BaseModel):
    """Base of the configuration's models: unknown keys refused, values immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)
