"""One method of a finished run, with all that it needs to predict: found by the run's records, and held to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forceuq.calibration import Calibration, read_calibrations
from forceuq.calibration_kinds import CALIBRATION_KINDS, CalibrationKind
from forceuq.configuration.benchmark import nearest
from forceuq.errors import ConfigurationError, DataError
from forceuq.features.layout import Precision
from forceuq.methods import BackboneSource
from forceuq.predictions import VALIDATION_SPLIT
from forceuq.provenance.artefacts import made_artefact
from forceuq.provenance.places import RECORDS
from forceuq.provenance.schema import Artefact, Record, read_record

Key = tuple[str, str, str, str]
"""Method, data set, task and seed, as in the paths of a run's results."""


@dataclass(frozen=True)
class Member:
    """One fit.

    Args:
        kind: of method.
        folder: of the fit.
        backbone: whose features it takes, or that it changes.
        precision: of the features that it was fitted to, as stored.
    """

    kind: str
    folder: Path
    backbone: BackboneSource
    precision: Precision


@dataclass(frozen=True)
class Chosen:
    """A method of a run.

    Args:
        key: method, data set, task and seed.
        members: its fit, or those that an ensemble combines.
        combination: kind and options of that ensemble; None: there is one fit.
        calibration: that was fitted on the validation predictions; None: the covariance as it is.
        validation: those predictions.
    """

    key: Key
    members: tuple[Member, ...]
    combination: tuple[str, dict[str, Any]] | None
    calibration: Calibration | None
    validation: Path

    @property
    def factors(self) -> tuple[float, float]:
        """The factors a and b of the predictive covariance a * floor + b * spread (eq. 12)."""
        return (1.0, 1.0) if self.calibration is None else (self.calibration.a, self.calibration.b)


def predicted(run: Path) -> dict[Key, Path]:
    """Return what a run has predictions of, with the records of the jobs that made them."""
    found = {}
    for rule in ("predict", "combine"):
        for path in sorted((run / RECORDS / rule).glob("*/*/*/seed*.json")):
            method, dataset, task = path.parts[-4:-1]
            found[method, dataset, task, path.stem.removeprefix("seed")] = path
    return found


def choose(
    run: Path,
    method: str,
    *,
    dataset: str | None = None,
    task: str | None = None,
    seed: int | None = None,
    calibration: CalibrationKind = "decoupled",
) -> Chosen:
    """Find a method of a run.

    Args:
        run: the run's folder of results.
        method: its name in the configuration.
        dataset: that it was fitted to; None where there is only one.
        task: likewise.
        seed: likewise; None: the lowest there is.
        calibration: which of the run's to apply.

    Raises:
        ConfigurationError: there is no such method, or there are several; the message names them.
        DataError: a file that is missing, damaged, or not what the run made.
    """
    there = predicted(run)
    if not there:
        raise DataError("has no predictions: it is no run's folder of results, or nothing was run there", file=run)
    key = _key(there, method, dataset, task, seed)
    results = run.parent
    record = read_record(there[key])
    members, combination = [record], None
    if record.rule == "combine":
        combination = (str(record.params["kind"]), dict(record.params["options"]))
        members = [_maker(results, artefact) for artefact in record.inputs if artefact.name == "members"]
    predictions = next(artefact for artefact in record.outputs if artefact.name == "predictions")
    return Chosen(
        key=key,
        members=tuple(_member(results, each) for each in members),
        combination=combination,
        calibration=None if calibration == "none" else _calibration(run, key, calibration, predictions),
        validation=_held_file(results, predictions, f"{VALIDATION_SPLIT}.parquet"),
    )


def _key(there: dict[Key, Path], method: str, dataset: str | None, task: str | None, seed: int | None) -> Key:
    left: Sequence[Key] = list(there)
    wanted = (("method", method), ("dataset", dataset), ("task", task), ("seed", None if seed is None else str(seed)))
    for place, (name, value) in enumerate(wanted):
        if value is not None:
            names = sorted({key[place] for key in left})
            left = [key for key in left if key[place] == value]
            if not left:
                raise ConfigurationError(f"{name}: the run has no '{value}'; {nearest(value, names)}")
    tasks = sorted({key[1:3] for key in left})
    if len(tasks) > 1:
        named = ", ".join(f"dataset '{each[0]}' with task '{each[1]}'" for each in tasks)
        raise ConfigurationError(f"{method} was fitted to several: say which of {named}")
    return min(left, key=lambda key: int(key[3]))


def _member(results: Path, record: Record) -> Member:
    named = {artefact.name: artefact for artefact in record.inputs}
    precision: Precision = "float32"
    if record.params["backbone"]:
        source, weights = record.params["backbone"], named["weights"]
    else:
        features = next(_maker(results, each) for name, each in named.items() if name.startswith("split_"))
        source, precision = features.params, features.params["precision"]
        weights = next(each for each in features.inputs if each.name == "weights")
    return Member(
        kind=record.params["kind"],
        folder=_held(results, named["fit"]),
        backbone=BackboneSource(source["kind"], _held(results, weights), source["options"]),
        precision=precision,
    )


def _maker(results: Path, artefact: Artefact) -> Record:
    if artefact.record is None:
        raise DataError("no record tells what made it: run the workflow again", file=results / artefact.path)
    record = read_record(results / artefact.record.path)
    if (artefact.path, artefact.sha256) not in {(output.path, output.sha256) for output in record.outputs}:
        raise DataError("was made again since these results: run the workflow again", file=results / artefact.path)
    return record


def _held(results: Path, artefact: Artefact) -> Path:
    path = results / artefact.path
    found, _ = made_artefact(artefact.name, path, results)
    return _same(path, found.sha256, artefact.sha256)


def _held_file(results: Path, artefact: Artefact, name: str) -> Path:
    """Hold one file of a directory, which may be large, to its record."""
    (entry,) = (each for each in artefact.files or () if each.path == name)
    path = results / artefact.path / name
    found, _ = made_artefact(name, path, results)
    return _same(path, found.sha256, entry.sha256)


def _same(path: Path, found: str, recorded: str) -> Path:
    if found != recorded:
        raise DataError(
            f"is not what these results were made with: SHA-256 {found}, not {recorded}; run the workflow again",
            file=path,
        )
    return path


def _calibration(run: Path, key: Key, kind: CalibrationKind, predictions: Artefact) -> Calibration:
    place = f"{'/'.join(key[:3])}/seed{key[3]}.json"
    record = run / RECORDS / "calibrate" / place
    if not record.exists():
        raise ConfigurationError(f"{key[0]} was not calibrated (nowhere evaluated by itself): use calibration none")
    job = read_record(record)
    (written,) = job.outputs
    if predictions.sha256 not in {artefact.sha256 for artefact in job.inputs}:
        raise DataError(
            "was fitted to other predictions than there are now: run the workflow again", file=run.parent / written.path
        )
    found = read_calibrations(_held(run.parent, written))
    for calibration in found:
        if calibration.kind == kind:
            return calibration
    if kind not in CALIBRATION_KINDS:
        raise ConfigurationError(f"calibration: there is no '{kind}'; {nearest(kind, CALIBRATION_KINDS)}")
    raise ConfigurationError(
        f"the run has no calibration '{kind}'; it has: {', '.join(each.kind for each in found)}, and none"
    )
