"""What the fits cost, as the fits themselves measured it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from forceuq.errors import DataError
from forceuq.files import read_json, whole_file


def cost_table(
    fits: Sequence[tuple[str, str, Path]], output: Path, methods: Mapping[str, str], datasets: Mapping[str, str]
) -> None:
    """Write the wall-clock seconds of the fits' stages by data set and method, as CSV and Markdown.

    Means go over seeds and tasks. A fit that started from another one's shows only its own stages.

    Args:
        fits: (data set, method, directory of the fit); its ``report.json`` has ``seconds`` by stage.
        output: where; .csv and .md are written.
        methods: labels of the methods by name, in order.
        datasets: labels of the data sets by name, in order.

    Raises:
        DataError: a fit without a readable report.
    """
    rows: list[dict[str, Any]] = []
    for dataset, method, directory in fits:
        file = directory / "report.json"
        try:
            report = read_json(file)
            stages = {stage: float(seconds) for stage, seconds in report["seconds"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"not a report of a fit ({error!r}); fit again", file=file) from error
        training = report.get("training") or report.get("projection") or {}
        rows.append(
            {
                "dataset": dataset,
                "method": method,
                **stages,
                "total": sum(stages.values()),
                "epochs": training.get("epochs"),
                "atoms": report.get("atoms"),
            }
        )
    frame = pd.DataFrame(rows)
    last = ["total", "epochs", "atoms"]
    # In the order in which a fit goes through them, as far as any fit tells.
    columns = sorted((c for c in frame.columns if c not in ("dataset", "method", *last)), key=_stage)
    frame = frame[["dataset", "method", *columns, *last]]
    groups = frame.groupby(["dataset", "method"], sort=False)
    means = groups.mean().join(groups.size().rename("fits"))
    order = [(d, m) for d in datasets for m in methods if (d, m) in means.index]
    means = means.loc[order].reset_index()
    with whole_file(output.with_suffix(".csv")) as temporary:
        means.to_csv(temporary, index=False, lineterminator="\n")
    with whole_file(output.with_suffix(".md")) as temporary:
        temporary.write_text(_markdown(means, methods, datasets), encoding="utf-8")


def _stage(name: str) -> tuple[int, str]:
    known = ("projection", "statistics", "hyperparameters")
    return (known.index(name) if name in known else len(known), name)


def _markdown(means: pd.DataFrame, methods: Mapping[str, str], datasets: Mapping[str, str]) -> str:
    stages = [c for c in means.columns if c not in ("dataset", "method", "epochs", "atoms", "fits")]
    lines = [
        "| Data set | Method | " + " | ".join(f"{stage} (s)" for stage in stages) + " | Epochs | Atoms | Fits |",
        "| --- | --- |" + " ---: |" * (len(stages) + 3),
    ]
    for _, row in means.iterrows():
        cells = [datasets[row["dataset"]], methods[row["method"]]]
        cells += ["–" if pd.isna(row[stage]) else f"{row[stage]:.2f}" for stage in stages]
        cells += ["–" if pd.isna(row[name]) else f"{row[name]:.0f}" for name in ("epochs", "atoms", "fits")]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", "Wall-clock means over seeds and tasks, measured by the fits.", ""])
