"""Methods that predict forces with a covariance: one module a kind, each with the same interface.

A module of this package is a kind of method. It holds ``Options`` (its settings in the configuration), ``fit``
and ``load``; heavy imports are inside functions, so that a configuration is checked in no time.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from forceuq.errors import ConfigurationError
from forceuq.predictions import PredictionBlock


@dataclass(frozen=True)
class TrainingData:
    """What a method is fitted to.

    Args:
        train: feature caches of the training parts.
        validation: those of the validation parts.
        head: the backbone's force head, a file of ``forceuq.backbones.head.ForceHead``.
    """

    train: tuple[Path, ...]
    validation: tuple[Path, ...]
    head: Path


class FittedMethod(Protocol):
    """What a fit gives."""

    def save(self, directory: Path) -> None:
        """Write everything that ``load`` of the kind's module needs."""

    def predict(self, feature_dirs: Sequence[Path]) -> Iterator[PredictionBlock]:
        """Yield the predictions for all atoms of the caches of a split's parts, in their order."""


class MethodModule(Protocol):
    """The interface of a kind's module."""

    Options: type[Any]

    def fit(
        self, data: TrainingData, options: Any, seed: int, checkpoints: Path, starts_from: Path | None = None
    ) -> FittedMethod:
        """Fit the method.

        Args:
            data: what to.
            options: the module's ``Options``.
            seed: of everything random.
            checkpoints: a directory for what is needed to go on after an interruption.
            starts_from: directory of another fit, for kinds that can start from one.
        """

    def load(self, directory: Path) -> FittedMethod:
        """Read what ``FittedMethod.save`` wrote."""


def kinds() -> tuple[str, ...]:
    """Return the kinds of method there are, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name[0] != "_"))


def load_method(kind: str) -> MethodModule:
    """Return the module of a kind of method.

    Raises:
        ConfigurationError: there is no such kind.
    """
    if kind not in kinds():
        near = difflib.get_close_matches(kind, kinds(), n=1, cutoff=0.0)
        raise ConfigurationError(
            f"unknown kind of method {kind!r}; nearest: {', '.join(near)}; there are: {', '.join(kinds())}"
        )
    module: Any = importlib.import_module(f"{__name__}.{kind}")
    return module  # type: ignore[no-any-return]
