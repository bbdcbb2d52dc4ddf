"""A configuration's plain values before they are checked: what overlays took away goes, a device is spread."""

from collections.abc import Callable
from typing import Any

from forceuq import methods

# Where entries are, where values are given by data set, and where data sets are listed; `*` stands for every key.
_Place = tuple[str, ...]
_ENTRIES: tuple[_Place, ...] = (("datasets",), ("methods",), ("features", "shards", "*"))
_BY_DATASET: tuple[_Place, ...] = (
    ("seeds",),
    ("features", "shards"),
    ("methods", "*", "seeds"),
    ("methods", "*", "combines", "members"),
)
_LISTS: tuple[_Place, ...] = (("datasets", "*", "evaluate_with"), ("methods", "*", "datasets"))


def without_nulls(values: dict[str, Any]) -> dict[str, Any]:
    """Return plain values without the entries that an overlay took away by null, nor what is said of those data sets.

    A list that would become empty is left as it is, for the checks to refuse: an empty one would mean something else.

    Args:
        values: the whole configuration.
    """
    datasets = values.get("datasets")
    gone = {name for name, entry in datasets.items() if entry is None} if isinstance(datasets, dict) else set()

    def entries(value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value

    def by_dataset(value: Any) -> Any:
        return {k: v for k, v in entries(value).items() if k not in gone} if isinstance(value, dict) else value

    def names(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        # What is no name is left for the models to refuse.
        return [name for name in value if not isinstance(name, str) or name not in gone] or value

    for place in _ENTRIES:
        values = _replaced(values, place, entries)
    for place in _BY_DATASET:
        values = _replaced(values, place, by_dataset)
    for place in _LISTS:
        values = _replaced(values, place, names)
    return values


def _replaced(value: Any, place: _Place, change: Callable[[Any], Any]) -> Any:
    """Return plain values in which what is at a place, if anything, was changed."""
    if not place:
        return change(value)
    if not isinstance(value, dict):  # left for the models to refuse
        return value
    return {k: _replaced(v, place[1:], change) if place[0] in ("*", k) else v for k, v in value.items()}


def with_device(values: dict[str, Any], device: str) -> dict[str, Any]:
    """Return a configuration's plain values in which every entry that has a ``device`` has one."""
    filled = {**values, "features": _filled(values.get("features"), device)}
    entries = values.get("methods")
    if isinstance(entries, dict):
        filled["methods"] = {name: _method_with_device(entry, device) for name, entry in entries.items()}
    return filled


def _method_with_device(entry: Any, device: str) -> Any:
    # Anything that is not an entry is left for the models to refuse.
    if not isinstance(entry, dict) or entry.get("kind") not in methods.kinds():
        return entry
    if "device" not in methods.load_method(entry["kind"]).Options.model_fields:
        return entry
    return {**entry, "options": _filled(entry.get("options"), device)}


def _filled(options: Any, device: str) -> Any:
    if options and not isinstance(options, dict):
        return options
    return {"device": device, **(options or {})}
