"""Measure atoms a second of each stage on the device at hand, in minutes: for ``throughput``'s records."""

import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from forceuq.throughput import Throughput, read_throughput, recorded, write_throughput

if TYPE_CHECKING:
    from forceuq.configuration.models import Configuration

_LOGGER = logging.getLogger(__name__)
# Atoms of a structure, of a batch on a processor, and of the predictions that are evaluated.
_CELL, _BATCH, _EVALUATED = 32, 1024, 50_000
# Draws of structures.
_DRAWS = 1000
# Epochs of the longer fit; the second where the first took hardly longer than one epoch.
_EPOCHS, _TELLING_SECONDS = (3, 41), 0.5
# Structures, at most, that a method is fitted to which runs the backbone anew.
_BACKBONE_ANEW = 1280
Device = Literal["cpu", "cuda"]


def measured_here(configuration: "Configuration", kept: Path, structures: int) -> dict[str, Throughput]:
    """Measure this machine's processor, and its GPU if it has one, or read what was kept of an earlier time.

    Args:
        configuration: the benchmark's.
        kept: folder of records.
        structures: to measure on.
    """
    import torch

    devices: list[Device] = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    files = []
    for device in devices:
        name = "none" if configuration.backbone is None else configuration.backbone.name
        files.append(kept / f"{name}-{platform.node()}-{device}.yaml")
        needed = {"bootstrap"} | {f"prediction {kind}" for kind in _methods(configuration)}
        if not files[-1].exists() or needed - set(read_throughput(files[-1]).rates):
            _LOGGER.warning("Measuring what this machine does, kept in %s", files[-1])
            with tempfile.TemporaryDirectory() as folder:
                write_throughput(measure(configuration, Path(folder), device, structures), files[-1])
    return recorded(configuration, files)


def measure(configuration: "Configuration", folder: Path, device: Device = "cpu", structures: int = 160) -> Throughput:
    """Measure a configuration's backbone and methods on copper cells of 32 atoms with random forces.

    What is learned of them does not matter. An epoch's time is half the difference between fits of three epochs and
    of one, so that starts do not count; where that is too short to tell, more epochs are taken. The backbone's
    weights are its own where they are a file, random ones otherwise, which take as long. Methods that run the
    backbone anew have 1,280 structures at most. A GPU caches with the configuration's batches and processes.

    Args:
        configuration: the benchmark's; ``max_epochs`` and ``device`` of its methods are replaced.
        folder: scratch space.
        device: where models run.
        structures: that are worked on, four fifths of them for training.
    """
    import torch

    from forceuq.features.extract import export_head, extract_features
    from forceuq.features.layout import ROW_GROUP_ATOMS

    backbone = configuration.backbone
    assert backbone is not None  # of every benchmark
    weights, options = _weights(backbone, folder), backbone.options.model_dump(mode="json")
    rates = {
        "read": structures * _CELL / _time_of_reading(folder, structures),
        "metrics": _rate_of_metrics(folder),
        "bootstrap": _rate_of_bootstrap(folder),
    }
    gpu, features = device == "cuda", configuration.features
    for part in ("val", "train"):
        made = extract_features(
            folder / "structures.parquet", folder / "splits.parquet", part, weights, backbone.kind, options,
            folder / part, max_atoms_per_batch=features.max_atoms_per_batch if gpu else _BATCH,
            # As in a large part: of few atoms there would be small row groups, and a GPU's passes lie within one.
            atoms_per_row_group=ROW_GROUP_ATOMS if gpu else None,
            workers=features.workers if gpu else 0, device=device,
        )  # fmt: skip
        rates["cache"] = made.atoms / made.seconds
    export_head(weights, backbone.kind, options, folder / "head.safetensors")
    for kind, wanted in _methods(configuration).items():
        rates |= _Trial(folder, kind, wanted, backbone.kind, weights, options, device).rates(structures)
    return Throughput(
        device=device,
        hardware=str(torch.cuda.get_device_name()) if device == "cuda" else _processor(),
        cores=torch.get_num_threads(),
        load=round(os.getloadavg()[0], 1),
        backbone=backbone.name,
        width=_width(folder / "train"),
        measured=datetime.now(UTC).date().isoformat(),
        versions={"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        rates={key: float(f"{value:.4g}") for key, value in rates.items()},
    )


@dataclass(frozen=True)
class _Trial:
    """Fits of one kind of method to what is in a folder."""

    folder: Path
    kind: str
    options: Any
    backbone: str
    weights: Path
    backbone_options: Mapping[str, Any]
    device: Device

    def rates(self, structures: int) -> dict[str, float]:
        atoms = (structures if self._source is None else min(structures, _BACKBONE_ANEW)) * _CELL
        first, fitted = _seconds(lambda: self._fit(1))
        epoch, found = 0.0, {}
        if "max_epochs" in type(self.options).model_fields:
            for epochs in _EPOCHS:
                longer, _ = _seconds(partial(self._fit, epochs))
                epoch = (longer - first) / (epochs - 1)
                if longer - first > _TELLING_SECONDS:
                    break
            # A difference that the clock cannot tell is no throughput.
            if epoch > 0:
                found[f"training {self.kind}"] = atoms / epoch
        found[f"single fit {self.kind}"] = atoms / max(first - max(epoch, 0.0), 1e-3)
        fitted.save(self.folder / self.kind)
        loaded = self._module.load(self.folder / self.kind, self._source)
        seconds, blocks = _seconds(lambda: list(loaded.predict([self.folder / "train"], self._parts("train"))))
        found[f"prediction {self.kind}"] = sum(map(len, blocks)) / seconds
        return found

    def _fit(self, epochs: int) -> Any:
        from forceuq.methods import TrainingData

        changed = {"max_epochs": epochs, "device": self.device}
        fields = type(self.options).model_fields
        data = TrainingData(
            (self.folder / "train",),
            (self.folder / "val",),
            self.folder / "head.safetensors",
            self._parts("train"),
            self._parts("val"),
            self._source,
        )
        options = self.options.model_copy(update={key: value for key, value in changed.items() if key in fields})
        return self._module.fit(data, options, 0, self.folder / f"{self.kind}-{epochs}")

    @property
    def _module(self) -> Any:
        from forceuq.methods import load_method

        return load_method(self.kind)

    @property
    def _source(self) -> Any:
        from forceuq.methods import BackboneSource, needs_structures

        return (
            BackboneSource(self.backbone, self.weights, self.backbone_options) if needs_structures(self.kind) else None
        )

    def _parts(self, name: str) -> tuple[Any, ...]:
        from forceuq.methods import StructurePart

        there = StructurePart(self.folder / "structures.parquet", self.folder / "few.parquet", name)
        return (there,) if self._source else ()


def _methods(configuration: "Configuration") -> dict[str, Any]:
    # An exact Gaussian process has no throughput: it is cubic in the atoms.
    return {m.kind: m.options for m in configuration.methods.values() if m.combines is None and m.kind != "gp"}


def _weights(backbone: Any, folder: Path) -> Path:
    from forceuq.backbones import load_backbone_module

    for url in backbone.weights.urls:
        if url.startswith("file:") and (there := Path(url.removeprefix("file:"))).is_file():
            return there
    module: Any = load_backbone_module(backbone.kind)
    module.write_random(backbone.options, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def _width(cache: Path) -> int:
    from forceuq.features.cache import FeatureReader

    return int(FeatureReader([cache]).metadata.width)


def _seconds(action: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result


def _time_of_reading(folder: Path, structures: int) -> float:
    """Write copper cells as MPtrj's JSON, and return the seconds of reading them into structures."""
    from forceuq.data.sources.mptrj import Options, convert
    from forceuq.data.splits import write_splits

    raw = folder / "raw"
    raw.write_text("{" + ",".join(_materials(structures)) + "}", encoding="utf-8")
    convert(raw, folder / "warm.parquet", Options())
    seconds, _ = _seconds(lambda: convert(raw, folder / "structures.parquet", Options()))
    names = ["val" if index % 5 == 4 else "train" for index in range(structures)]
    ids = [f"frame-{index}" for index in range(structures)]
    for file, number in (("splits", structures), ("few", min(structures, _BACKBONE_ANEW))):
        rows = range(number)
        write_splits(folder / f"{file}.parquet", ids[:number], rows, names[:number], expected=("train", "val"))
    return float(seconds)


def _materials(structures: int) -> Iterator[str]:
    from ase.build import bulk

    cell = bulk("Cu", cubic=True) * (2, 2, 2)
    for index in range(structures):
        random = np.random.default_rng(index)
        moved = cell.positions + random.normal(0, 0.05, cell.positions.shape)
        sites = [
            {"species": [{"element": "Cu", "occu": 1}], "abc": xyz, "xyz": xyz, "label": "Cu", "properties": {}}
            for xyz in moved.tolist()
        ]
        record = {
            "structure": {"lattice": {"matrix": cell.cell.tolist()}, "sites": sites},
            "corrected_total_energy": -1.0,
            "energy_per_atom": -1.0,
            "e_per_atom_relaxed": -1.0,
            "force": random.normal(0, 1, moved.shape).tolist(),
        }
        yield f'"material-{index}": {json.dumps({f"frame-{index}": record})}'


def _rate_of_metrics(folder: Path) -> float:
    """Calibrate and evaluate made-up predictions; return atoms times calibrations a second."""
    from forceuq.calibration import fit_calibrations
    from forceuq.metrics import evaluate_predictions
    from forceuq.predictions import VALIDATION_SPLIT, PredictionBlock, write_predictions

    random = np.random.default_rng(0)
    structure = np.arange(_EVALUATED) // _CELL
    block = PredictionBlock(
        structure=structure,
        atom=(np.arange(_EVALUATED) % _CELL).astype(np.int32),
        number=np.full(_EVALUATED, 29, np.int16),
        part=np.zeros(_EVALUATED, np.int16),
        target=random.normal(size=(_EVALUATED, 3)),
        mean=random.normal(size=(_EVALUATED, 3)),
        floor=np.tile([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], (_EVALUATED, 1)),
        spread=random.uniform(0.1, 1, (_EVALUATED, 1)) * [1.0, 1.0, 1.0, 0.0, 0.0, 0.0],
    )
    file = folder / "predictions.parquet"
    labels = {"dataset": "d", "task": "t", "method": "m", "seed": 0, "split": VALIDATION_SPLIT}
    write_predictions(file, [block], labels)

    def work() -> int:
        fitted = fit_calibrations(file, folder / "calibrations.json")
        evaluate_predictions(file, folder / "calibrations.json", folder / "metrics", folder / "curves", labels)
        return len(fitted)

    seconds, calibrations = _seconds(work)
    return float(calibrations * _EVALUATED / seconds)


def _rate_of_bootstrap(folder: Path) -> float:
    """Draw structures of the predictions that metrics were made of; return atoms times draws a second.

    Calibrations leave the order of these as it is, as they do with a BLL. Each core has a process of its own, as in
    ``forceuq.comparisons.compare``.
    """
    import torch
    from threadpoolctl import threadpool_limits

    from forceuq.bootstrap import bootstrap
    from forceuq.calibration import read_calibrations

    calibrations = [(c.a, c.b) for c in read_calibrations(folder / "calibrations.json")]
    with threadpool_limits(1):
        seconds, _ = _seconds(lambda: bootstrap(folder / "predictions.parquet", calibrations, _DRAWS, [0]))
    return float(torch.get_num_threads() * _DRAWS * _EVALUATED / seconds)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
