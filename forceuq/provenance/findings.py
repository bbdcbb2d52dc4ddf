"""What an audit finds, and how grave it is."""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What can be wrong with a result."""

    ALTERED = "altered"
    """Its bytes, or those of a record, are not those that were written."""
    MISSING = "missing"
    UNACCOUNTED = "unaccounted"
    """It is among the results, and no record tells what made it."""
    REMADE = "remade"
    """It, or an input that it was made from, has been made again since, with other content."""
    CODE = "code"
    """It was made by other code than today's."""
    CONFIGURATION = "configuration"
    """It was made under another configuration."""
    DIRTY = "dirty"
    """It was made from a tree with changes that no commit has."""


GRAVE = frozenset({Kind.ALTERED, Kind.MISSING, Kind.UNACCOUNTED})
"""What no honest run leaves behind; the others say that results are not today's."""


@dataclass(frozen=True)
class Finding:
    """Something wrong.

    Args:
        kind: what.
        path: the file, relative to the results folder.
        detail: what was expected, what was found.
        record: the job that it concerns, by its record relative to the results folder; None: no job.
    """

    kind: Kind
    path: str
    detail: str
    record: str | None = None

    def as_json(self) -> dict[str, str | None]:
        """Return it as plain values."""
        return {"kind": self.kind.value, "path": self.path, "detail": self.detail, "record": self.record}
