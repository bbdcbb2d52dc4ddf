"""Measure atoms a second of each stage on the device at hand, in minutes: for ``throughput``'s records."""

import itertools
import json
import logging
import os
import platform
import tempfile
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from forceuq.backbones import load_backbone_module
from forceuq.errors import ConfigurationError
from forceuq.methods import needs_structures
from forceuq.plan import work_of
from forceuq.throughput import REVISION, Throughput, read_throughput, recorded, write_throughput
from forceuq.throughput_fits import Trials, seconds

if TYPE_CHECKING:
    from forceuq.configuration.models import Configuration

_LOGGER = logging.getLogger(__name__)
# Atoms of a structure, of a batch on a processor, and of the predictions that are evaluated.
_CELL, _BATCH, _EVALUATED = 32, 1024, 50_000
# Draws of structures.
_DRAWS = 1000
# Throughputs of what neither runs the backbone nor takes its features.
_WITHOUT_BACKBONE = ("read", "metrics", "bootstrap")
# Structures, at most, that a method is fitted to which runs the backbone anew.
_BACKBONE_ANEW = 1280
Device = Literal["cpu", "cuda"]


def measured_here(configuration: "Configuration", kept: Path, structures: int) -> dict[str, Throughput]:
    """Measure what the plan needs of this machine's processor, and of its GPU if it has one, and keep it.

    What was kept of an earlier time is not measured again, unless in a way that was since mended.

    Args:
        configuration: the benchmark's.
        kept: folder of records.
        structures: to measure on.
    """
    import torch

    _say_if_not_run(configuration)
    devices: list[Device] = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    files = []
    for device in devices:
        name = "none" if configuration.backbone is None else configuration.backbone.name
        files.append(kept / f"{name}-{platform.node()}-{device}.yaml")
        before = read_throughput(files[-1]) if files[-1].exists() else None
        if before is not None and before.revision < REVISION:
            before = None
        known = {} if before is None else before.rates
        missing = measurable(configuration, device).keys() - known.keys()
        if before is None or missing:
            _LOGGER.warning("Measuring what this machine does, kept in %s", files[-1])
            with tempfile.TemporaryDirectory() as folder:
                found = measure(configuration, Path(folder), device, structures, missing)
            width = found.width if before is None else found.width or before.width
            found = found.model_copy(update={"rates": {**known, **found.rates}, "width": width})
            write_throughput(found, files[-1])
            if untold := sorted(missing - found.rates.keys()):
                _LOGGER.warning("Too short to be told by the clock: %s", ", ".join(untold))
    return recorded(configuration, files)


def measurable(configuration: "Configuration", device: Device | None = None) -> dict[str, str]:
    """Return the throughputs that a plan needs and that can be measured, each with the entry that takes it.

    What runs the backbone, or takes its features, can only be measured with weights: its own, where they are a file, or
    random ones, where its kind can make them.

    Args:
        configuration: the benchmark's.
        device: where the work is to be done; None: anywhere.
    """
    weighed = _can_be_run(configuration)
    found: dict[str, str] = {}
    for work in work_of(configuration, None):
        if device is not None and work.device != device:
            continue
        fitted = work.stage in ("fit", "predict")
        # An exact Gaussian process has no throughput: it is cubic in the atoms.
        possible = configuration.methods[work.name].kind != "gp" if fitted else work.rate == "cache"
        if work.rate in _WITHOUT_BACKBONE or (weighed and possible):
            found.setdefault(work.rate, work.name)
    return found


def measure(
    configuration: "Configuration",
    folder: Path,
    device: Device = "cpu",
    structures: int = 160,
    wanted: Collection[str] | None = None,
) -> Throughput:
    """Measure a configuration's backbone and methods on copper cells of 32 atoms with random forces.

    What is learned of them does not matter. A fit's throughput is that of a difference, of fits with more epochs and
    with one, or with more atoms and fewer, so that starts do not count. As much is done as the clock needs to tell;
    where it cannot, nothing is recorded. The backbone's weights are its own where they are a file, random ones
    otherwise, which take as long. Methods on cached features have at least 16,384 atoms for training, made of those of
    ``structures`` where these have fewer; those that run the backbone anew have 1,280 structures at most. A GPU caches
    with the configuration's batches and processes.

    Args:
        configuration: the benchmark's; ``max_epochs``, ``patience`` and ``device`` of its methods are replaced.
        folder: scratch space.
        device: where models run.
        structures: that are worked on, four fifths of them for training.
        wanted: throughputs; None: all that ``measurable`` names for any device.

    Raises:
        ConfigurationError: it has no backbone.
    """
    import torch

    from forceuq.features.extract import export_head, extract_features
    from forceuq.features.layout import ROW_GROUP_ATOMS

    backbone = configuration.backbone
    if backbone is None:
        raise ConfigurationError("the configuration has no backbone, so that there is nothing to measure")
    if wanted is None:
        _say_if_not_run(configuration)
    possible = measurable(configuration)
    trials = {rate: name for rate, name in possible.items() if wanted is None or rate in wanted}
    rates: dict[str, float | None] = {
        "read": structures * _CELL / _time_of_reading(folder, structures),
        "metrics": _rate_of_metrics(folder),
    }
    if "bootstrap" in trials:
        rates["bootstrap"] = _rate_of_bootstrap(folder)
    trials = {rate: name for rate, name in trials.items() if rate not in _WITHOUT_BACKBONE}
    if trials:
        weights, options = _weights(backbone, folder), backbone.options.model_dump(mode="json")
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
        cached = _widened(folder)
        train, val = _parts(min(structures, _BACKBONE_ANEW))
        anew = {"wide-train": train * _CELL, "wide-val": val * _CELL, "more-train": train * _CELL}
        fits = Trials(folder, configuration, weights, device)
        for rate, name in trials.items():
            if rate != "cache":
                atoms = anew if needs_structures(configuration.methods[name].kind) else cached
                rates[rate] = fits.rate(rate, name, atoms)
    return Throughput(
        device=device,
        hardware=str(torch.cuda.get_device_name()) if device == "cuda" else _processor(),
        cores=torch.get_num_threads(),
        load=round(os.getloadavg()[0], 1),
        backbone=backbone.name,
        width=_width(folder / "train") if trials else None,
        measured=datetime.now(UTC).date().isoformat(),
        revision=REVISION,
        versions={"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        rates={key: float(f"{value:.4g}") for key, value in rates.items() if value is not None},
    )


def _file_of_weights(backbone: Any) -> Path | None:
    files = (Path(url.removeprefix("file:")) for url in backbone.weights.urls if url.startswith("file:"))
    return next((file for file in files if file.is_file()), None)


def _can_be_run(configuration: "Configuration") -> bool:
    backbone = configuration.backbone
    if backbone is None:
        return False
    return _file_of_weights(backbone) is not None or hasattr(load_backbone_module(backbone.kind), "write_random")


def _say_if_not_run(configuration: "Configuration") -> None:
    backbone = configuration.backbone
    if backbone is not None and not _can_be_run(configuration):
        _LOGGER.warning(
            "The weights of %s are no file (of a 'file:' URL), and forceuq/backbones/%s.py has no write_random to make"
            " some: what runs it, and what is fitted to its features, is not known",
            backbone.name,
            backbone.kind,
        )


def _weights(backbone: Any, folder: Path) -> Path:
    if (there := _file_of_weights(backbone)) is not None:
        return there
    module: Any = load_backbone_module(backbone.kind)
    module.write_random(backbone.options, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def _parts(structures: int) -> tuple[int, int]:
    """Return how many structures are in train and val: every fifth is in val."""
    return structures - structures // 5, structures // 5


def _widened(folder: Path) -> dict[str, int]:
    """Write the features that fits work on, made of those of few atoms; return how many atoms each cache has.

    Training atoms fill a row group or more, and eight in the cache that is added for a longer fit. Each time all is
    moved at random: the evidence of the same atoms again and again has no maximum.
    """
    from forceuq.features.cache import FeatureReader, FeatureWriter
    from forceuq.features.layout import ROW_GROUP_ATOMS

    once, more = (-(-groups * ROW_GROUP_ATOMS // FeatureReader([folder / "train"]).n_atoms) for groups in (1, 8))
    atoms = {}
    for cache, part, first, times in (("wide-train", "train", 0, once), ("wide-val", "val", 0, once),
                                      ("more-train", "train", once, more)):  # fmt: skip
        reader = FeatureReader([folder / part])
        with FeatureWriter(folder / cache, reader.metadata) as writer:
            for copy, block in itertools.product(range(first, first + times), list(reader.blocks())):
                random = np.random.default_rng([copy, int(block.structure[0])])
                moved = random.normal(block.features, block.features.std(axis=0)).astype(np.float32)
                structure = block.structure + copy * (1 << 32)
                force = random.normal(size=block.force.shape)
                writer.add(structure, block.atom, block.number, force, block.zbl, moved)
        atoms[cache] = times * reader.n_atoms
    return atoms


def _width(cache: Path) -> int:
    from forceuq.features.cache import FeatureReader

    return int(FeatureReader([cache]).metadata.width)


def _time_of_reading(folder: Path, structures: int) -> float:
    """Write copper cells as MPtrj's JSON, and return the seconds of reading them into structures."""
    from forceuq.data.sources.mptrj import Options, convert
    from forceuq.data.splits import write_splits

    raw = folder / "raw"
    raw.write_text("{" + ",".join(_materials(structures)) + "}", encoding="utf-8")
    convert(raw, folder / "first.parquet", Options())
    taken, _ = seconds(lambda: convert(raw, folder / "structures.parquet", Options()))
    names = ["val" if index % 5 == 4 else "train" for index in range(structures)]
    ids = [f"frame-{index}" for index in range(structures)]
    for file, number in (
        ("splits", structures),
        ("few", min(structures, _BACKBONE_ANEW)),
        ("warm", min(structures, 5)),
    ):
        rows = range(number)
        write_splits(folder / f"{file}.parquet", ids[:number], rows, names[:number], expected=("train", "val"))
    return taken


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

    taken, calibrations = seconds(work)
    return float(calibrations * _EVALUATED / taken)


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
        taken, _ = seconds(lambda: bootstrap(folder / "predictions.parquet", calibrations, _DRAWS, [0]))
    return float(torch.get_num_threads() * _DRAWS * _EVALUATED / taken)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
