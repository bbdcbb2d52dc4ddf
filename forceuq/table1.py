"""The paper's Table 1: what each method costs to train and to use, from what the jobs measured."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from forceuq.errors import DataError
from forceuq.files import read_json, whole_file
from forceuq.measurement import Cost, read_cost

_SUMMED = ("core_hours", "gpu_hours", "seconds_per_1000_atoms", "backbone_passes", "head_passes", "parameters")
_LARGEST = ("peak_memory_bytes", "peak_gpu_memory_bytes")


@dataclass(frozen=True)
class FitFolders:
    """Where one fit and what it cost lie.

    Args:
        fits: its directory, and those of the fits that it started from.
        predictions: directory of its predictions.
        trained_on: feature caches of its training and validation parts; empty if it runs the backbone itself.
        predicted: feature caches of the parts that it predicts; likewise.
    """

    fits: tuple[Path, ...]
    predictions: Path
    trained_on: tuple[Path, ...]
    predicted: tuple[Path, ...]


@dataclass(frozen=True)
class Instance:
    """One row's method on one task with one seed: a single fit, or the members of an ensemble."""

    dataset: str
    method: str
    members: tuple[FitFolders, ...]


def table1(
    instances: Sequence[Instance],
    output: Path,
    methods: Mapping[str, str],
    datasets: Mapping[str, str],
    paper: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write the costs by data set and method as CSV, Markdown and LaTeX; means over tasks and seeds.

    Training is the time of the fits' own stages, over all attempts, with that of the fits they started from and
    of the backbone's pass over the training and validation data where features are cached: core-hours (time x
    threads; of the pass, processor time), or GPU-hours of fits on GPUs (time x their number). Prediction is the
    time an atom takes from its structure on, the backbone's pass included, reading and writing too; an ensemble's
    members are added up, although those that share cached features would need one pass of the backbone.

    Args:
        instances: the fits.
        output: where, any suffix; .csv, .md and .tex are written.
        methods: labels of the methods by name, in order.
        datasets: labels of the data sets by name, in order.
        paper: rows of the paper's table by label, with keys ``train`` and ``passes`` as printed; None: none.

    Raises:
        DataError: a report or a cost that is missing or damaged.
    """
    frame = pd.DataFrame([_row(instance) for instance in instances])
    groups = frame.groupby(["dataset", "method"], sort=False)
    means = groups.mean().join(groups.size().rename("fits"))
    order = [(dataset, method) for dataset in datasets for method in methods if (dataset, method) in means.index]
    means = means.loc[order].reset_index()
    with whole_file(output.with_suffix(".csv")) as temporary:
        means.to_csv(temporary, index=False, lineterminator="\n")
    rows = [(datasets[row["dataset"]], methods[row["method"]], *_cells(row)) for _, row in means.iterrows()]
    for suffix, text in ((".md", _markdown(rows, paper)), (".tex", _latex(rows, paper))):
        with whole_file(output.with_suffix(suffix)) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _row(instance: Instance) -> dict[str, Any]:
    members = pd.DataFrame([_member(folders) for folders in instance.members])
    # Of a sum with something unknown nothing is known.
    return {
        "dataset": instance.dataset,
        "method": instance.method,
        **{name: members[name].sum(skipna=False) for name in _SUMMED},
        **{name: members[name].max() for name in _LARGEST},
    }


def _member(folders: FitFolders) -> dict[str, float | None]:
    reports = [_report(directory) for directory in folders.fits]
    costs = [read_cost(directory) for directory in folders.fits]
    hours = {"core_hours": 0.0, "gpu_hours": 0.0}
    for report, cost in zip(reports, costs, strict=True):
        on_gpu = cost.gpu or report["gpu"]
        devices = report["processes"] if on_gpu else max(cost.threads, report["processes"])
        hours["gpu_hours" if on_gpu else "core_hours"] += report["seconds"] * devices
    passes = [read_cost(directory) for directory in folders.trained_on]
    for cost in passes:
        hours["gpu_hours" if cost.gpu else "core_hours"] += cost.seconds if cost.gpu else cost.cpu_seconds
    prediction = read_cost(folders.predictions)
    own = reports[0]
    return {
        **{name: seconds / 3600 for name, seconds in hours.items()},
        "seconds_per_1000_atoms": _per_1000(folders.predictions, [prediction])
        + (_per_1000(folders.predicted[0], [read_cost(d) for d in folders.predicted]) if folders.predicted else 0.0),
        "backbone_passes": own["backbone_passes"],
        "head_passes": own["head_passes"],
        "parameters": own["parameters"],
        **{name: _largest(name, [*map(vars, [*costs, *passes, prediction]), *reports]) for name in _LARGEST},
    }


def _largest(name: str, found: Sequence[Mapping[str, Any]]) -> int | None:
    return max((each[name] for each in found if each[name]), default=None)


def _per_1000(directory: Path, costs: Sequence[Cost]) -> float:
    if any(cost.atoms is None for cost in costs):
        raise DataError("does not say how many atoms it is of; run the job again", file=directory)
    return 1000 * sum(_work(cost) for cost in costs) / sum(cost.atoms or 0 for cost in costs)


def _work(cost: Cost) -> float:
    return cost.seconds if cost.work_seconds is None else cost.work_seconds


def _report(directory: Path) -> dict[str, Any]:
    file = directory / "report.json"
    try:
        report = read_json(file)
        passes = report.get("passes") or {}
        # Of fits in several processes, which their job's own cost does not include.
        processes = report.get("processes") or {}
        return {
            "seconds": sum(float(seconds) for seconds in report["seconds"].values()),
            "parameters": (report.get("parameters") or {}).get("trained"),
            "backbone_passes": passes.get("backbone"),
            "head_passes": passes.get("head"),
            "processes": int(processes.get("count", 1)),
            "gpu": processes.get("gpu"),
            **{name: processes.get(name) for name in _LARGEST},
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"not a report of a fit ({error!r}); fit again", file=file) from error


_HEADS = (
    "Training",
    "Passes: backbone",
    "Passes: head",
    "s / 1000 atoms",
    "Parameters trained",
    "Peak memory (GiB)",
    "Fits",
)
_NOTE = (
    "Training: hours of a core (core-h) or a GPU (GPU-h), the backbone's pass over the training data included; an "
    "ensemble's is that of all its members. s / 1000 atoms: prediction with the backbone's pass, on the same device. "
    "Means over seeds and tasks, measured by the jobs."
)


def _cells(row: pd.Series) -> Iterator[str]:
    hours = [
        f"{row[name]:.2g} {unit}" for name, unit in (("gpu_hours", "GPU-h"), ("core_hours", "core-h")) if row[name]
    ]
    yield " + ".join(hours) or "0"
    for name, form in (
        ("backbone_passes", ".0f"),
        ("head_passes", ".0f"),
        ("seconds_per_1000_atoms", ".3g"),
        ("parameters", ",.0f"),
    ):
        yield "–" if pd.isna(row[name]) else format(row[name], form)
    yield f"{row['peak_memory_bytes'] / 2**30:.2f}" + (
        "" if pd.isna(row["peak_gpu_memory_bytes"]) else f" + {row['peak_gpu_memory_bytes'] / 2**30:.2f} GPU"
    )
    yield str(row["fits"])


def _paper_rows(paper: Mapping[str, Mapping[str, Any]] | None) -> Iterator[tuple[str, ...]]:
    for label, values in (paper or {}).items():
        yield "MPtrj", f"paper: {label}", f"{values['train']} A100-h", str(values["passes"]), *["–"] * 5


def _markdown(rows: Sequence[tuple[str, ...]], paper: Mapping[str, Mapping[str, Any]] | None) -> str:
    lines = [
        "| Data set | Method | " + " | ".join(_HEADS) + " |",
        "| --- | --- |" + " ---: |" * len(_HEADS),
    ]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines += [f"| *{r[0]}* | *{r[1]}* | " + " | ".join(r[2:]) + " |" for r in _paper_rows(paper)]
    return "\n".join([*lines, "", _NOTE, ""])


def _latex(rows: Sequence[tuple[str, ...]], paper: Mapping[str, Mapping[str, Any]] | None) -> str:
    from forceuq.tables import tex

    lines = ["% needs \\usepackage{booktabs}", r"\begin{tabular}{ll" + "r" * len(_HEADS) + "}", r"\toprule"]
    lines += [" & ".join(tex(cell) for cell in ("Data set", "Method", *_HEADS)) + r" \\", r"\midrule"]
    lines += [" & ".join(tex(cell).replace("–", "--") for cell in row) + r" \\" for row in rows]
    paper_rows = list(_paper_rows(paper))
    if paper_rows:
        lines.append(r"\midrule")
    lines += [
        rf"\textit{{{tex(r[0])}}} & \textit{{{tex(r[1])}}} & "
        + " & ".join(tex(cell).replace("–", "--") for cell in r[2:])
        + r" \\"
        for r in paper_rows
    ]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", f"% {_NOTE}", ""])
