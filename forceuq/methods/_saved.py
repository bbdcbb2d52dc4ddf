"""What the directories of fits say of themselves: their kind, seed and options."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from forceuq.errors import ConfigurationError, DataError
from forceuq.files import read_json


def read_saved(directory: Path, kind: str) -> dict[str, Any]:
    """Return what a fit wrote into its options.json.

    Raises:
        DataError: there is none, or it is damaged.
        ConfigurationError: the directory is a fit of another kind.
    """
    path = directory / "options.json"
    try:
        saved: dict[str, Any] = read_json(path)
        found = saved["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"no options of a {kind!r} fit ({error}): fit it again", file=path) from error
    if found != kind:
        raise ConfigurationError(f"{directory} is a fit of kind {found!r}, not {kind!r}")
    return saved


def refuse_other_settings(directory: Path, found: BaseModel, wanted: BaseModel, names: Collection[str]) -> None:
    """Make sure that what a fit reuses of another one is what it would have trained itself.

    Args:
        directory: of the other fit, for the message.
        found: its options.
        wanted: this fit's.
        names: those that must be equal.

    Raises:
        ConfigurationError: some differ, naming them.
    """
    differing = [name for name in names if getattr(found, name) != getattr(wanted, name)]
    if differing:
        theirs, ours = (json.dumps({name: getattr(each, name) for name in differing}) for each in (found, wanted))
        raise ConfigurationError(
            f"starts_from: what would be reused of {directory} was trained with {theirs}, this fit has {ours}: set"
            " them alike, or drop starts_from"
        )
