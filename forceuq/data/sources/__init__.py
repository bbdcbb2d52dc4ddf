"""Published data sets: one module a kind, each with the same interface.

A module holds ``Options`` (its settings in the configuration), ``convert`` (raw file to structures), ``split``
(structures to parts), ``parts`` and ``tasks`` (known from the options alone). Heavy imports are inside functions.
"""

import difflib
import importlib
import pkgutil
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
