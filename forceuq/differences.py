"""What differs between two nested plain values."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


ABSENT: Final = _Absent()
"""Stands for a value that is not there; None is a value."""


@dataclass(frozen=True)
class Change:
    """One value that differs; ``path`` leads to it: ``options.learning_rate``."""

    path: str
    old: Any
    new: Any

    @property
    def kind(self) -> str:
        """``gained``, ``lost`` or ``changed``."""
        if self.old is ABSENT:
            return "gained"
        return "lost" if self.new is ABSENT else "changed"

    def __str__(self) -> str:
        return f"{self.path}: {self.old} -> {self.new}"


def value_changes(path: str, old: Any, new: Any) -> Iterator[Change]:
    """Yield the differences of two values, as deep down as both are dictionaries or lists.

    Args:
        path: of the values themselves; empty at the top.
        old: the one.
        new: the other.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            if key not in old or key not in new or old[key] != new[key]:
                below = f"{path}.{key}" if path else str(key)
                yield from value_changes(below, old.get(key, ABSENT), new.get(key, ABSENT))
    elif _is_list(old) and _is_list(new):
        gained = [each for each in new if each not in old]
        lost = [each for each in old if each not in new]
        if gained and len(gained) == len(lost):
            for before, after in zip(lost, gained, strict=True):
                yield Change(path, before, after)
        else:
            yield from (Change(path, ABSENT, each) for each in gained)
            yield from (Change(path, each, ABSENT) for each in lost)
            if not gained and not lost and list(old) != list(new):
                yield Change(path, old, new)
    elif old is not new and (type(old) is not type(new) or old != new):
        yield Change(path, old, new)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))
