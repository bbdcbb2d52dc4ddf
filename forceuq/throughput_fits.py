"""Measure atoms a second of fits and predictions, on what ``throughput_measurement`` has put into a folder."""

import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forceuq.errors import FitError
from forceuq.methods import BackboneSource, StructurePart, TrainingData, load_method, needs_structures

if TYPE_CHECKING:
    from forceuq.configuration.models import Configuration

_LOGGER = logging.getLogger(__name__)
# What is measured takes at least so long: less is the clock's and the machine's noise.
_TELLING_SECONDS, _SHORT_SECONDS = 0.5, 5.0
# Epochs of the longer fit, and how often more atoms are added to the first: as many as it takes to tell.
_EPOCHS, _TIMES = (3, 11, 41, 161, 641), (0, 1, 4, 16, 64)


def seconds(action: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long an action took, s, and what it returned."""
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result


@dataclass(frozen=True)
class Trials:
    """Fits of a configuration's methods to what is in a folder.

    The folder has ``structures.parquet``, the splits ``few.parquet`` and ``warm.parquet`` of it, the features ``train``
    and ``val``, those of more atoms ``wide-train``, ``wide-val`` and ``more-train``, and ``head.safetensors``.

    Args:
        folder: it.
        configuration: the benchmark's; the epochs, the patience and the device of its methods are replaced.
        weights: of the backbone.
        device: where models run.
    """

    folder: Path
    configuration: "Configuration"
    weights: Path
    device: str
    _warm: dict[str, Path] = field(default_factory=dict)

    def rate(self, rate: str, method: str, atoms: Mapping[str, int]) -> float | None:
        """Return one throughput; None where the clock cannot tell, or a fit to random forces fails.

        Args:
            rate: ``training``, ``single fit`` or ``prediction``, and a kind.
            method: entry of the configuration that takes it.
            atoms: in ``wide-train``, ``wide-val`` and ``more-train``, or in what this kind works on in their place.
        """
        try:
            return self._rate(rate, method, atoms)
        except FitError as error:
            _LOGGER.warning("%s was not measured with '%s': %s", rate, method, error)
            return None

    def _rate(self, rate: str, method: str, atoms: Mapping[str, int]) -> float | None:
        warm = self._fitted(method)
        if rate.startswith("training"):
            first = _least(partial(self._fit, method, self._data(method), 1, started=False))
            found = _told(lambda epochs: self._fit(method, self._data(method), epochs, started=False), _EPOCHS, first)
            return None if found is None else (atoms["wide-train"] + atoms["wide-val"]) * (found[0] - 1) / found[1]
        if rate.startswith("single fit"):
            first = _least(partial(self._fit, method, self._data(method), 1))
            found = _told(lambda times: self._fit(method, self._data(method, times), 1), _TIMES[1:], first)
            return None if found is None else found[0] * atoms["more-train"] / found[1]
        loaded = load_method(self._kind(method)).load(warm, self._source(method))

        def predict(data: TrainingData) -> None:
            for _ in loaded.predict(data.train, data.train_structures):
                pass

        predict(self._data(method, warm=True))
        found = _told(lambda times: predict(self._data(method, times)), _TIMES, 0.0)
        return None if found is None else (atoms["wide-train"] + found[0] * atoms["more-train"]) / found[1]

    def _fitted(self, method: str) -> Path:
        """Return the directory of a fit to few atoms: the first of a kind is slow, and others start from it."""
        if method not in self._warm:
            fitted = self._fit(method, self._data(method, warm=True), 1)
            self._warm[method] = self.folder / "fits" / method
            fitted.save(self._warm[method])
        return self._warm[method]

    def _fit(self, method: str, data: TrainingData, epochs: int, started: bool = True) -> Any:
        entry = self.configuration.methods[method]
        fields = type(entry.options).model_fields
        # Of random forces nothing is learned: patience would end a longer fit early.
        changed: dict[str, Any] = {"max_epochs": epochs, "patience": epochs, "device": self.device}
        if "swag_epochs" in fields:  # of its second stage, after the others
            changed |= {"swag_epochs": 2, "rank": 2}
        if "residuals" in fields:  # BLIP's passes over them take longer than its epochs
            changed["residuals"] = "mean-weights"
        options = entry.options.model_copy(update={key: value for key, value in changed.items() if key in fields})
        start = self._fitted(entry.starts_from) if started and entry.starts_from is not None else None
        # No checkpoint of another fit may be there.
        checkpoints = Path(tempfile.mkdtemp(dir=self.folder))
        return load_method(entry.kind).fit(data, options, 0, checkpoints, start)

    def _data(self, method: str, more: int = 0, warm: bool = False) -> TrainingData:
        """Return what is fitted to, more atoms added to it so many times; few atoms to warm up."""
        splits = self.folder / ("warm.parquet" if warm else "few.parquet")
        source = self._source(method)
        structures = {
            part: (StructurePart(self.folder / "structures.parquet", splits, part),) if source else ()
            for part in ("train", "val")
        }
        prefix = "" if warm else "wide-"
        return TrainingData(
            (self.folder / f"{prefix}train",) + (self.folder / "more-train",) * more,
            (self.folder / f"{prefix}val",),
            self.folder / "head.safetensors",
            structures["train"] * (1 + more),
            structures["val"],
            source,
        )

    def _kind(self, method: str) -> str:
        return self.configuration.methods[method].kind

    def _source(self, method: str) -> BackboneSource | None:
        backbone = self.configuration.backbone
        if backbone is None or not needs_structures(self._kind(method)):
            return None
        return BackboneSource(backbone.kind, self.weights, backbone.options.model_dump(mode="json"))


def _least(action: Callable[[], object]) -> float:
    """Return how long an action takes, s; what is short is done twice, for another process may have come between."""
    taken, _ = seconds(action)
    return min(taken, seconds(action)[0]) if taken < _SHORT_SECONDS else taken


def _told(action: Callable[[int], object], steps: Iterable[int], before: float) -> tuple[int, float] | None:
    """Return the first step that takes tellingly longer than ``before``, and by how many seconds; None if none does."""
    for step in steps:
        taken = _least(partial(action, step))
        if taken - before > max(_TELLING_SECONDS, before / 4):  # what is long varies by more
            return step, taken - before
    return None
