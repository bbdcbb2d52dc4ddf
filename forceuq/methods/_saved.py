"""What the directories of fits say of themselves: their kind, seed and options."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from forceuq.errors import ConfigurationError, DataError
from forceuq.files import read_json, write_json

_Options = TypeVar("_Options", bound=BaseModel)


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


def write_saved(directory: Path, kind: str, seed: int, options: BaseModel, **more: str) -> None:
    """Write a fit's options.json: the last of its files, for a directory that has it is whole.

    Args:
        directory: of the fit.
        kind: of method.
        seed: it was fitted with.
        options: likewise.
        more: further entries.
    """
    values = {"kind": kind, "seed": seed, "options": options.model_dump(mode="json"), **more}
    write_json(directory / "options.json", values)


def options_and_seed(directory: Path, kind: str, options: type[_Options]) -> tuple[_Options, int]:
    """Return options and seed of a fit that ``write_saved`` described.

    Raises:
        DataError: there are none, or they are damaged.
        ConfigurationError: the directory is a fit of another kind.
    """
    saved = read_saved(directory, kind)
    try:
        return options(**saved["options"]), int(saved["seed"])
    except (KeyError, TypeError, ValueError) as error:
        path = directory / "options.json"
        raise DataError(f"not options of a {kind!r} fit ({error}): fit it again", file=path) from error


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
    unlike = difference(found, wanted, names)
    if unlike is not None:
        raise ConfigurationError(
            f"starts_from: what would be reused of {directory} was trained with {unlike}: set them alike, or drop"
            " starts_from"
        )


def difference(found: BaseModel, wanted: BaseModel, names: Collection[str]) -> str | None:
    """Return a phrase with the settings among ``names`` that two fits have unlike; None where all are equal."""
    differing = sorted(name for name in names if getattr(found, name) != getattr(wanted, name))
    if not differing:
        return None
    theirs, ours = (json.dumps({name: getattr(each, name) for name in differing}) for each in (found, wanted))
    return f"{theirs}, this fit has {ours}"
