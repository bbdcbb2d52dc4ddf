"""Raw files made by the workflow itself, in the formats of published data sets; one module a kind.

A kind's module holds ``Options`` and ``generate``. ``molecules`` and ``alloys`` are what they sample from.
"""

import difflib
import importlib
import pkgutil
from pathlib import Path
from typing import Any, Protocol

from forceuq.errors import ConfigurationError

_NOT_KINDS = ("alloys", "molecules")


class GeneratorModule(Protocol):
    """The interface of a kind's module."""

    Options: type[Any]

    def generate(self, output: Path, options: Any) -> None:
        """Write the raw file."""


def kinds() -> tuple[str, ...]:
    """Return the kinds of generator there are, sorted."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _NOT_KINDS))


def load_generator(kind: str) -> GeneratorModule:
    """Return the module of a kind of generator.

    Raises:
        ConfigurationError: there is no such kind.
    """
    if kind not in kinds():
        near = difflib.get_close_matches(kind, kinds(), n=1, cutoff=0.0)
        raise ConfigurationError(f"unknown kind of generator {kind!r}; nearest: {', '.join(near)}")
    module: Any = importlib.import_module(f"{__name__}.{kind}")
    return module  # type: ignore[no-any-return]
