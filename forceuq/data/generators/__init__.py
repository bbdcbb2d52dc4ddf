"""Raw files made here, in the formats of published data sets: one module a kind, each with the same interface.

A kind's module holds ``Options`` and ``generate``; the other modules of this package are its samplers.
"""

import difflib
import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from forceuq.errors import ConfigurationError


class GeneratorModule(Protocol):
    """The interface of a kind's module."""

    Options: type[Any]

    def generate(self, output: Path, options: Any) -> None:
        """Write the raw file ``output``; the same options give the same bytes on the same machine."""


@cache
def kinds() -> tuple[str, ...]:
    """Return the kinds of generator there are, sorted: the modules that define ``generate`` (none is imported)."""
    found = []
    for folder in __path__:
        for module in pkgutil.iter_modules([folder]):
            source = Path(folder, f"{module.name}.py")
            if source.is_file() and "\ndef generate(" in source.read_text(encoding="utf-8"):
                found.append(module.name)
    return tuple(sorted(found))


def load_generator(kind: str) -> GeneratorModule:
    """Return the module of a kind of generator.

    Raises:
        ConfigurationError: there is no such kind.
    """
    if kind not in kinds():
        near = difflib.get_close_matches(kind, kinds(), n=1, cutoff=0.0)
        raise ConfigurationError(
            f"unknown kind of generator {kind!r}; nearest: {', '.join(near)}; there are: {', '.join(kinds())}"
        )
    module: Any = importlib.import_module(f"{__name__}.{kind}")
    return module  # type: ignore[no-any-return]
