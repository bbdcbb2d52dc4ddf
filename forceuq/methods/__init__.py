"""Methods that predict forces with a covariance: one module a kind, each with the same interface.

A module of this package is a kind of method. It holds ``Options`` (its settings in the configuration), ``fit``
and ``load``; heavy imports are inside functions, so that a configuration is checked in no time.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from forceuq.errors import ConfigurationError
from forceuq.methods._saved import difference
from forceuq.predictions import PredictionBlock


@dataclass(frozen=True)
class StructurePart:
    """Where the structures of one part lie: its data set's structures and splits files, and its name in them."""

    structures: Path
    splits: Path
    name: str


def structure_parts(places: Iterable[Sequence[str]]) -> tuple[StructurePart, ...]:
    """Return the parts of (structures file, splits file, name of the part) triples."""
    return tuple(StructurePart(Path(structures), Path(splits), name) for structures, splits, name in places)


@dataclass(frozen=True)
class BackboneSource:
    """What a backbone is loaded from: its kind, the file of its weights, and its options as plain values."""

    kind: str
    weights: Path
    options: Mapping[str, Any]


@dataclass(frozen=True)
class TrainingData:
    """What a method is fitted to.

    Args:
        train: feature caches of the training parts.
        validation: those of the validation parts.
        head: the backbone's force head, a file of ``forceuq.backbones.head.ForceHead``.
        train_structures: the training parts themselves; for kinds with ``NEEDS_STRUCTURES`` only, else empty.
        validation_structures: the validation parts likewise.
        backbone: the backbone itself likewise.
        statistics: what the kind's ``summarise_shard`` wrote of each of ``train``; empty where it was not asked to.
    """

    train: tuple[Path, ...]
    validation: tuple[Path, ...]
    head: Path
    train_structures: tuple[StructurePart, ...] = ()
    validation_structures: tuple[StructurePart, ...] = ()
    backbone: BackboneSource | None = None
    statistics: tuple[Path, ...] = ()


class FittedMethod(Protocol):
    """What a fit gives."""

    def save(self, directory: Path) -> None:
        """Write everything that ``load`` of the kind's module needs."""

    def predict(
        self, feature_dirs: Sequence[Path], structures: Sequence[StructurePart] = ()
    ) -> Iterator[PredictionBlock]:
        """Yield the predictions for all atoms of a split's parts, in their order.

        Args:
            feature_dirs: the parts' feature caches.
            structures: the parts themselves, for kinds with ``NEEDS_STRUCTURES`` only.
        """


class MethodModule(Protocol):
    """The interface of a kind's module.

    A kind that works on structures rather than on cached features says ``NEEDS_STRUCTURES = True``. One whose fit
    can be made from statistics of shards offers ``head_before_fit(options, head, starts_from)``, the file of the
    head whose features they are of (None where that comes of the fit itself), and ``summarise_shard(features,
    head, output)``, which writes them; see ``forceuq.methods.bll``. One that can start from another fit says
    ``REUSES = {kind: names}``: of which kinds, and which of its options must then be those of that fit.
    """

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

    def load(self, directory: Path, backbone: BackboneSource | None = None) -> FittedMethod:
        """Read what ``FittedMethod.save`` wrote; ``backbone`` for kinds with ``NEEDS_STRUCTURES`` only."""


def needs_structures(kind: str) -> bool:
    """Return whether methods of a kind work on structures rather than on cached features."""
    return bool(getattr(load_method(kind), "NEEDS_STRUCTURES", False))


def head_before_fit(kind: str, options: Any, head: Path, starts_from: Path | None) -> Path | None:
    """Return the file of the head under which shards can be summarised before a fit; None where they cannot.

    Args:
        kind: of method.
        options: its ``Options``.
        head: the backbone's force head.
        starts_from: directory of the fit that this one starts from.
    """
    given = getattr(load_method(kind), "head_before_fit", None)
    path: Path | None = None if given is None else given(options, head, starts_from)
    return path


def refuse_start(kind: str, options: Any, start_kind: str, start_options: Any) -> None:
    """Make sure that a fit can start from another one, before either is made.

    Args:
        kind: of the fit's method.
        options: its ``Options``.
        start_kind: of the method whose fit it starts from.
        start_options: that one's ``Options``.

    Raises:
        ConfigurationError: it can start from none, or from none of this kind, or their training differs.
    """
    reusable: Mapping[str, Collection[str]] = getattr(load_method(kind), "REUSES", {})
    if start_kind not in reusable:
        of = " or ".join(repr(name) for name in sorted(reusable))
        raise ConfigurationError(
            f"a fit of kind {kind!r} starts from {f'one of kind {of}, not {start_kind!r}' if reusable else 'no other'}"
        )
    unlike = difference(start_options, options, reusable[start_kind])
    if unlike is not None:
        raise ConfigurationError(f"what would be reused is trained with {unlike}: set them alike")


def combines_members(kind: str) -> bool:
    """Return whether a kind combines the predictions of another method's fits instead of being fitted."""
    return hasattr(load_method(kind), "combine")


@cache
def kinds() -> tuple[str, ...]:
    """Return the kinds of method there are, sorted; looked up once, for a large workflow asks thousands of times."""
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
