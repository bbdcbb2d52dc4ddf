"""What differs between the parameters that a job ran with and those that it would run with now."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from forceuq.differences import ABSENT, Change, value_changes


def parameter_changes(recorded: Sequence[str], now: Mapping[str, Any]) -> list[Change]:
    """Return what changed between the recorded representations of values, which have no names, and named values.

    Each named value that is new is compared with the recorded one that is most like it.
    """
    current = {name: repr(value) for name, value in now.items()}
    old = [_value(text) for text in recorded if text not in current.values()]
    changes: list[Change] = []
    for name, value in now.items():
        if current[name] in recorded:
            continue
        likeness = [_likeness(candidate, value) for candidate in old]
        best = max(range(len(old)), key=likeness.__getitem__, default=None)
        before = ABSENT if best is None or likeness[best] == 0 else old.pop(best)
        changes.extend(value_changes(name, before, value))
    changes.extend(Change("a parameter", value, ABSENT) for value in old)
    return changes


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):  # a hash of a table, an enumeration: compared as it is written
        return text


def _likeness(one: Any, other: Any) -> float:
    """Return how much two values look like the same parameter: 0 for those that cannot be."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = one.keys() | other.keys()
        return 0.1 + len(one.keys() & other.keys()) / (len(keys) or 1)
    if isinstance(one, str) and isinstance(other, str):
        return 1.0 if is_digest(one) == is_digest(other) else 0.0
    if _is_list(one) and _is_list(other):
        return 0.1 + sum(each in other for each in one) / (max(len(one), len(other)) or 1)
    numbers = (int, float)
    both_numbers = isinstance(one, numbers) and isinstance(other, numbers)
    return 1.0 if type(one) is type(other) or both_numbers else 0.0


def is_digest(value: Any) -> bool:
    """Return whether a value looks like the digest of a job's code."""
    return isinstance(value, str) and len(value) == 16 and set(value) <= set("0123456789abcdef")


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))
