"""The files of a fit that changes a backbone's parameters: those parameters, options and report. Imports torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from forceuq.errors import ConfigurationError, DataError
from forceuq.files import file_digest, whole_file, write_json
from forceuq.finetuning.training import Group, Trained
from forceuq.methods import BackboneSource


def values_of(groups: Sequence[Group]) -> dict[str, Tensor]:
    """Return copies of what is trained, on the CPU."""
    return {name: value.detach().cpu().clone() for group in groups for name, value in group.parameters.items()}


def counts_of(groups: Sequence[Group]) -> dict[str, int]:
    """Return the number of parameters by group, and of all as ``trained``."""
    counts = {group.name: sum(value.numel() for value in group.parameters.values()) for group in groups}
    return {**counts, "trained": sum(counts.values())}


def trace_of(trained: Trained) -> dict[str, Any]:
    """Return what a report says of a training."""
    return {
        "epochs": trained.epochs,
        "best_epoch": trained.best_epoch,
        "stopped": trained.stopped,
        "trace": [list(entry) for entry in trained.trace],
    }


def save_fit(
    directory: Path,
    kind: str,
    seed: int,
    source: BackboneSource,
    options: Mapping[str, Any],
    values: Mapping[str, Tensor],
    report: Mapping[str, Any],
    *,
    file: str,
    schema: str,
) -> None:
    """Write a fit's files; options.json comes last: reading needs it, so a directory with it is whole.

    Args:
        directory: where.
        kind: of method.
        seed: the fit was made with.
        source: the backbone that ``values`` change.
        options: as configured.
        values: parameters by name.
        report: what was done.
        file: name of the parameters' file.
        schema: that its header names.
    """
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous() for name, value in sorted(values.items())}
    with whole_file(directory / file) as temporary:
        save_file(tensors, temporary, metadata={"forceuq": schema})
    write_json(directory / "report.json", dict(report))
    digest = file_digest(source.weights)
    write_json(
        directory / "options.json",
        {"kind": kind, "seed": seed, "weights_sha256": digest, "options": dict(options)},
    )


def check_backbone(
    directory: Path, kind: str, saved: Mapping[str, Any], source: BackboneSource | None
) -> BackboneSource:
    """Return the backbone if it is the one that a fit was made with.

    Raises:
        ConfigurationError: there is none.
        DataError: it has other weights.
    """
    if source is None:
        raise ConfigurationError(f"{directory}: a fit of kind {kind!r} is loaded with its backbone")
    if file_digest(source.weights) != saved["weights_sha256"]:
        raise DataError(f"is not the backbone that {directory} was fitted to: fit it again", file=source.weights)
    return source


def read_values(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters that ``save_fit`` wrote.

    Args:
        path: the file.
        expected: names, with tensors of their shapes.

    Raises:
        DataError: the file is missing or damaged, or holds other parameters.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        values: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot be read ({error}): fit it again", file=path) from error
    shapes = {name: tuple(value.shape) for name, value in expected.items()}
    if shapes != {name: tuple(value.shape) for name, value in values.items()}:
        raise DataError("holds other parameters than its options say: fit it again", file=path)
    return values
