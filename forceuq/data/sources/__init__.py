"""Published data sets: one module a kind, each with the same interface.

A module holds ``Options`` (its settings in the configuration), ``convert`` (raw file to structures), ``split``
(structures to parts), ``parts`` and ``tasks`` (known from the options alone). Heavy imports are inside functions.
A module whose ``convert`` can use several processes says how many in ``MAX_THREADS`` and takes ``threads``.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from forceuq.data.splits import Task
from forceuq.errors import ConfigurationError


class SourceModule(Protocol):
    """The interface of a kind's module."""

    Options: type[Any]

    def convert(self, raw: Path, output: Path, options: Any) -> None:
        """Read the raw file ``raw`` and write the structures file ``output``."""

    def split(self, structures: Path, output: Path, options: Any) -> None:
        """Cut a structures file into parts and write the splits file ``output``."""

    def parts(self, options: Any) -> tuple[str, ...]:
        """Return the names of the parts."""

    def tasks(self, dataset: str, options: Any) -> tuple[Task, ...]:
        """Return the tasks; ``dataset`` is the data set's name in the configuration."""


def kinds() -> tuple[str, ...]:
    """Return the kinds of data set there are, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name[0] != "_"))


def load_source(kind: str) -> SourceModule:
    """Return the module of a kind of data set.

    Raises:
        ConfigurationError: there is no such kind.
    """
    if kind not in kinds():
        near = difflib.get_close_matches(kind, kinds(), n=1, cutoff=0.0)
        raise ConfigurationError(
            f"unknown kind of data set {kind!r}; nearest: {', '.join(near)}; there are: {', '.join(kinds())}"
        )
    module: Any = importlib.import_module(f"{__name__}.{kind}")
    return module  # type: ignore[no-any-return]


def max_threads(kind: str) -> int:
    """Return how many processes the reader of a kind can use."""
    return getattr(load_source(kind), "MAX_THREADS", 1)


def convert(kind: str, raw: Path, output: Path, options: Mapping[str, Any], threads: int = 1) -> None:
    """Read a raw file of some kind into a structures file, whose bytes do not depend on ``threads``."""
    source = load_source(kind)
    shared = {"threads": threads} if max_threads(kind) > 1 else {}
    source.convert(raw, output, source.Options(**options), **shared)
