"""What the entries of a configuration mean together: which tasks there are, and what is fitted to which data set."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import AfterValidator, Discriminator, Field, Tag

from forceuq.data.sources import load_source
from forceuq.data.splits import PartRef, Task
from forceuq.errors import ConfigurationError
from forceuq.methods import refuse_start

if TYPE_CHECKING:
    from forceuq.configuration.models import Configuration, DatasetConfig, MethodConfig

T = TypeVar("T")


def _form(value: Any) -> str:
    return "by_dataset" if isinstance(value, Mapping) else "all"


def each_once(value: tuple[T, ...]) -> tuple[T, ...]:
    """Return a list as it is; a ValueError says where it names something twice."""
    if len(set(value)) != len(value):
        raise ValueError(f"{list(value)} names something twice")
    return value


# NumPy takes no negative seed, and file names have none.
Seed = Annotated[int, Field(ge=0)]
SeedsOnce = Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(each_once)]
Ensembles = Annotated[tuple[tuple[Seed, ...], ...], Field(min_length=1), AfterValidator(each_once)]

# Told apart by form, so that an error speaks of the one that was meant.
Seeds = Annotated[
    Annotated[SeedsOnce, Tag("all")] | Annotated[dict[str, SeedsOnce], Tag("by_dataset")], Discriminator(_form)
]
"""Seeds for all data sets, or by data set."""

Members = Annotated[
    Annotated[Ensembles, Tag("all")] | Annotated[dict[str, Ensembles], Tag("by_dataset")], Discriminator(_form)
]
"""The members' seeds of each ensemble, for all data sets or by data set."""


def all_forms(value: T | Mapping[str, T]) -> list[T]:
    """Return the one value for all data sets, or each data set's."""
    return list(value.values()) if isinstance(value, Mapping) else [value]


def for_dataset(value: T | Mapping[str, T], dataset: str, otherwise: T | Mapping[str, T] | None = None) -> T | None:
    """Return what a value says of one data set; where it says nothing, what ``otherwise`` says."""
    if not isinstance(value, Mapping):
        return value
    if dataset in value:
        return value[dataset]
    return None if otherwise is None else for_dataset(otherwise, dataset)


def joined_tasks(datasets: "Mapping[str, DatasetConfig]") -> dict[tuple[str, str], Task]:
    """Return (data set, name) -> task, with what ``evaluate_with`` adds to their evaluation.

    A data set with ``evaluate_with`` has no tasks of its own; all its parts make one more split, of the data set's
    name, of each task of the data sets that it names.

    Raises:
        ValueError: a data set that nothing is trained on and that no task evaluates, or one whose ``evaluate_with``
            names no data set with tasks, or whose name is that of a split there.
    """
    tasks = {}
    for name, dataset in datasets.items():
        if dataset.evaluate_with:
            continue
        own = load_source(dataset.kind).tasks(name, dataset.options)
        if not own:
            raise ValueError(
                f"datasets.{name}: nothing is trained on it; say under 'evaluate_with' which data sets' tasks are "
                "evaluated on it"
            )
        tasks.update({(name, task.name): task for task in own})
    trained = {dataset for dataset, _ in tasks}
    for name, dataset in datasets.items():
        parts = tuple(PartRef(name, part) for part in load_source(dataset.kind).parts(dataset.options))
        for other in dataset.evaluate_with:
            if other not in trained:
                near = nearest(other, trained)
                raise ValueError(f"datasets.{name}.evaluate_with: there is no '{other}' that is trained on; {near}")
            for key, task in tasks.items():
                if key[0] != other:
                    continue
                if name in task.evaluate or name == "validation":
                    raise ValueError(f"datasets.{name}: '{other}' has a split of this name; take another name")
                tasks[key] = replace(task, evaluate={**task.evaluate, name: parts})
    return tasks


def check_methods(configuration: "Configuration") -> None:
    """Check that what methods say of data sets, of each other and of seeds fits together.

    Raises:
        ValueError: naming the key at fault.
    """
    methods = configuration.methods
    trained = list(dict.fromkeys(dataset for dataset, _ in configuration.tasks))
    for dataset in trained:
        if for_dataset(configuration.seeds, dataset) is None:
            raise ValueError(f"seeds: none for the data set '{dataset}'")
    for dataset in configuration.seeds if isinstance(configuration.seeds, dict) else ():
        known("seeds", dataset, trained)
    for name, method in methods.items():
        _check_datasets(f"methods.{name}", method, trained)
    for name, method in methods.items():
        seen = [name]
        start = method.starts_from
        while start is not None:
            key = f"methods.{name}.starts_from"
            if start in seen:
                raise ValueError(f"{key}: {' -> '.join([*seen, start])} is a circle")
            known(key, start, methods)
            if methods[start].combines is not None:
                raise ValueError(f"{key}: '{start}' is a combination, not a fit")
            if len(seen) == 1:
                _check_start(key, method, methods[start])
            for dataset in trained:
                _check_seeds(key, configuration, start, dataset, configuration.seeds_of(name, dataset))
            seen.append(start)
            start = methods[start].starts_from
    for name, method in methods.items():
        if method.combines is None:
            continue
        key, member = f"methods.{name}.combines", method.combines.method
        known(f"{key}.method", member, methods)
        if methods[member].combines is not None:
            raise ValueError(f"{key}.method: '{member}' is a combination itself")
        for dataset in trained:
            used = [seed for ensemble in configuration.members_of(name, dataset) for seed in ensemble]
            _check_seeds(f"{key}.members", configuration, member, dataset, used)


def check_labels(configuration: "Configuration") -> None:
    """Check that no two data sets, nor two methods that are evaluated, have one label: rows are told apart by it.

    Raises:
        ValueError: naming both keys.
    """
    evaluated = {name: method for name, method in configuration.methods.items() if method.evaluate}
    for group, entries in (("datasets", configuration.datasets), ("methods", evaluated)):
        first: dict[str, str] = {}
        for name, entry in entries.items():
            if (other := first.setdefault(entry.label, name)) != name:
                raise ValueError(
                    f"{group}.{name}.label: '{entry.label}' is that of {group}.{other} too; give each its own, since "
                    "tables tell them apart by it"
                )


def known(key: str, value: str, among: Iterable[str]) -> None:
    """Check a name; a ValueError names the key and the nearest valid names."""
    if value not in among:
        raise ValueError(f"{key}: there is no '{value}'; {nearest(value, among)}")


def nearest(value: object, choices: Iterable[str]) -> str:
    """Return a phrase that names the valid choices, the nearest first."""
    names = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(value), names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(f"'{name}'" for name in close) + "?"
    return "valid: " + ", ".join(f"'{name}'" for name in sorted(names))


def _check_start(key: str, method: "MethodConfig", start: "MethodConfig") -> None:
    try:
        refuse_start(method.kind, method.options, start.kind, start.options)
    except ConfigurationError as error:
        raise ValueError(f"{key}: {error}; or drop starts_from") from None


def _check_datasets(key: str, method: "MethodConfig", trained: list[str]) -> None:
    named = {"datasets": list(method.datasets or ())}
    if isinstance(method.seeds, dict):
        named["seeds"] = list(method.seeds)
    if method.combines is not None and isinstance(method.combines.members, dict):
        named["combines.members"] = list(method.combines.members)
    for name, datasets in named.items():
        for dataset in datasets:
            known(f"{key}.{name}", dataset, trained)
    for dataset in method.datasets or trained:
        if dataset not in named.get("combines.members", trained):
            raise ValueError(f"{key}.combines.members: none for '{dataset}'; give some, or leave it out of 'datasets'")


def _check_seeds(key: str, configuration: "Configuration", method: str, dataset: str, used: Iterable[int]) -> None:
    """Raise where a method is not fitted with seeds that another needs."""
    if missing := set(used) - set(configuration.seeds_of(method, dataset)):
        raise ValueError(f"{key}: '{method}' has no seeds {sorted(missing)} on '{dataset}'")
