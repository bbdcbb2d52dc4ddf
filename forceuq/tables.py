"""Metrics aggregated over seeds and tasks, and the paper's Table 2 as CSV, Markdown and LaTeX."""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from forceuq.errors import ConfigurationError, DataError
from forceuq.files import whole_file
from forceuq.metric_tables import read_frame

CALIBRATION_LABELS = {"none": "raw", "temperature": "temperature", "decoupled": "decoupled (a, b)"}
TABLE2_METRICS = ("mae", "ece", "spearman", "nll")
_LABELS = {"mae": "MAE", "ece": "ECE", "spearman": "Spearman", "nll": "NLL"}
_HIGHER_IS_BETTER = {"spearman"}
_GROUP = ["dataset", "split", "method", "calibration", "metric"]

SplitLabels = Sequence[tuple[str, str, str]]
"""(dataset, split, label) in the order of the table's or figure's groups."""


def aggregate(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation over seeds and tasks.

    A task is what a method is fitted to; rMD17 has one a training molecule, and the paper averages over
    molecules and seeds alike. Values that are null are left out of the mean and counted.

    Args:
        metrics: the long metrics table (``forceuq.metric_tables.read_frame``).

    Returns:
        A row for each dataset, split, method, calibration and metric, with ``mean``; ``std``, the sample
        standard deviation (n - 1), null for n = 1; ``n`` values, ``n_seeds``, ``n_tasks``; ``n_undefined``
        nulls left out; ``n_atoms`` of all of them; ``note``, the reasons given for the nulls.
    """
    rows = []
    for key, group in metrics.groupby(_GROUP, sort=True):
        values = group["value"].to_numpy(dtype=float)
        defined = values[~np.isnan(values)]
        rows.append(
            {
                **dict(zip(_GROUP, key, strict=True)),
                "mean": float(defined.mean()) if len(defined) else None,
                "std": float(defined.std(ddof=1)) if len(defined) > 1 else None,
                "n": len(defined),
                "n_seeds": group["seed"].nunique(),
                "n_tasks": group["task"].nunique(),
                "n_undefined": len(values) - len(defined),
                "n_atoms": int(group["n_atoms"].sum()),
                "note": "; ".join(sorted(set(group["note"].dropna()))) or None,
            }
        )
    return pd.DataFrame(rows)


def paper_values() -> dict[str, Any]:
    """Return the paper's printed numbers: keys citation, table2, text (see ``paper_values.yaml``)."""
    text = resources.files("forceuq").joinpath("paper_values.yaml").read_text(encoding="utf-8")
    value: dict[str, Any] = yaml.safe_load(text)
    return value


def table2(
    metrics: Path,
    output: Path,
    splits: SplitLabels,
    methods: Mapping[str, str],
    *,
    fitted_to: Mapping[str, Sequence[str]] | None = None,
    comparisons: Mapping[str, Path] | None = None,
    calibrations: Mapping[str, str] = CALIBRATION_LABELS,
    paper: Mapping[str, str] | None = None,
    paper_methods: Sequence[str] = ("Recalibrated BLL",),
    decimals: int = 3,
) -> None:
    """Write the paper's Table 2: MAE, ECE, Spearman and NLL by split, method and calibration.

    Writes ``output`` with the suffixes .csv (full precision: mean, standard deviation and n of each metric),
    .md and .tex (mean ± standard deviation, in bold the best of each split and what the data cannot tell from
    it).

    Args:
        metrics: the merged metrics.
        output: where, any suffix.
        splits: (dataset, split, label) of the row groups in order; the table must have each of them.
        methods: labels of the methods by name, in order.
        fitted_to: the data sets that each method is fitted to; without it every method must be on every data set.
        comparisons: what ``forceuq.comparisons.compare`` wrote, by data set; without it only the best is bold.
        calibrations: labels of the calibrations by kind, in order.
        paper: our dataset's name -> the paper's ("mptrj", "rmd17"), to add the paper's own numbers as rows
            marked as such (never in bold, never averaged with ours); None: none.
        paper_methods: which of the paper's rows.
        decimals: of the Markdown and LaTeX.

    Raises:
        DataError: the metrics have no row of a split, or of a method on it.
        ConfigurationError: two splits with one label.
    """
    frame = table2_frame(
        metrics,
        splits,
        methods,
        fitted_to=fitted_to,
        calibrations=calibrations,
        paper=paper,
        paper_methods=paper_methods,
    )
    with whole_file(output.with_suffix(".csv")) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")
    best, bold = _best(frame), "Bold: best of the split."
    if comparisons is not None:
        not_worse, unknown = _not_worse(frame, splits, methods, calibrations, comparisons)
        best |= not_worse
        bold = _bold(unknown)
    with whole_file(output.with_suffix(".md")) as temporary:
        temporary.write_text(_markdown(frame, best, decimals, bold), encoding="utf-8")
    with whole_file(output.with_suffix(".tex")) as temporary:
        temporary.write_text(_latex(frame, best, decimals, bold), encoding="utf-8")


def table2_frame(
    metrics: Path,
    splits: SplitLabels,
    methods: Mapping[str, str],
    *,
    fitted_to: Mapping[str, Sequence[str]] | None = None,
    calibrations: Mapping[str, str] = CALIBRATION_LABELS,
    paper: Mapping[str, str] | None = None,
    paper_methods: Sequence[str] = ("Recalibrated BLL",),
) -> pd.DataFrame:
    """Return Table 2 as numbers, a row a (split, method, calibration); arguments as of ``table2``."""
    if len({label for _, _, label in splits}) < len(splits):
        raise ConfigurationError(f"two splits of the table have the same label: {[s[2] for s in splits]}")
    means = aggregate(read_frame(metrics, "metrics"))
    printed = paper_values()["table2"]
    rows = []
    for dataset, split, label in splits:
        here = means[(means["dataset"] == dataset) & (means["split"] == split)]
        if here.empty:
            known = sorted({f"{d}/{s}" for d, s in zip(means["dataset"], means["split"], strict=True)})
            raise DataError(f"has no metrics of '{dataset}/{split}'; it has {', '.join(known)}", file=metrics)
        for method, method_label in methods.items():
            if fitted_to is not None and dataset not in fitted_to[method]:
                continue
            if method not in set(here["method"]):
                raise DataError(
                    f"has no metrics of the method '{method}' on '{dataset}/{split}' (one that cannot run "
                    "there has nulls with a reason: forceuq.metrics.write_unavailable)",
                    file=metrics,
                )
            for calibration, calibration_label in calibrations.items():
                own = here[(here["method"] == method) & (here["calibration"] == calibration)]
                if own.empty:
                    continue
                row: dict[str, Any] = {
                    "split": label,
                    "method": method_label,
                    "calibration": calibration_label,
                    "source": "this run",
                }
                by_metric = own.set_index("metric")
                for metric in TABLE2_METRICS:
                    for column in ("mean", "std", "n"):
                        row[f"{metric}_{column}"] = by_metric.loc[metric, column]
                row["note"] = "; ".join(
                    f"{_LABELS[metric]} in {missing} of {defined + missing} fits ({reason})"
                    for metric, missing, defined, reason in zip(
                        own["metric"], own["n_undefined"], own["n"], own["note"], strict=True
                    )
                    if metric in TABLE2_METRICS and missing
                )
                rows.append(row)
        key = f"{(paper or {}).get(dataset)}/{split}"
        for name in paper_methods if key in printed else ():
            if name in printed[key]:
                row = {"split": label, "method": name, "calibration": "", "source": "paper"}
                for metric in TABLE2_METRICS:
                    mean, std = printed[key][name][metric] or (None, None)
                    row |= {f"{metric}_mean": mean, f"{metric}_std": std, f"{metric}_n": None}
                rows.append({**row, "note": ""})
    frame = pd.DataFrame(rows)
    for metric in TABLE2_METRICS:
        frame[f"{metric}_mean"] = frame[f"{metric}_mean"].astype(float)
        frame[f"{metric}_std"] = frame[f"{metric}_std"].astype(float)
        frame[f"{metric}_n"] = frame[f"{metric}_n"].astype("Int64")
    return frame


def _best(frame: pd.DataFrame) -> set[tuple[int, str]]:
    """Return (row, metric) of the best of our values in each split; exact ties are all best."""
    best = set()
    for _, group in frame[frame["source"] == "this run"].groupby("split", sort=False):
        for metric in TABLE2_METRICS:
            values = group[f"{metric}_mean"].dropna()
            if values.empty:
                continue
            top = values.max() if metric in _HIGHER_IS_BETTER else values.min()
            best |= {(int(str(i)), metric) for i in values.index[np.isclose(values, top, rtol=1e-9, atol=0)]}
    return best


def _not_worse(
    frame: pd.DataFrame,
    splits: SplitLabels,
    methods: Mapping[str, str],
    calibrations: Mapping[str, str],
    comparisons: Mapping[str, Path],
) -> tuple[set[tuple[int, str]], list[str]]:
    """Return (row, metric) of what is not found worse than the best of its split, and splits of too few structures."""
    ours = frame[frame["source"] == "this run"]
    rows = {(row["split"], row["method"], row["calibration"]): int(str(i)) for i, row in ours.iterrows()}
    found, unknown = set(), []
    for dataset, split, label in splits:
        path = comparisons[dataset]
        try:
            table = pd.read_csv(path)
            table = table[table["split"] == split]
            if len(table) and table["low"].isna().all():
                unknown.append(label)
                continue
            table = table[~table["worse"].astype(bool)]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"not a table of comparisons ({error}); make it again", file=path) from error
        for entry in table.to_dict("records"):
            kind = entry["calibration"]
            if entry["method"] in methods and kind in calibrations:
                found.add((rows[label, methods[entry["method"]], calibrations[kind]], str(entry["metric"])))
    return found, unknown


def _cell(row: pd.Series, metric: str, decimals: int, plus_minus: str) -> str:
    mean, std = row[f"{metric}_mean"], row[f"{metric}_std"]
    if pd.isna(mean):
        return "–"
    text = f"{mean:.{decimals}f}"
    return text if pd.isna(std) else f"{text}{plus_minus}{std:.{decimals}f}"


def _bold(unknown: Sequence[str]) -> str:
    """Return what bold means, given the splits of which the bootstrap cannot say."""
    few = f" (too few to say of {', '.join(unknown)}: only the best there)" if unknown else ""
    return (
        "Bold: best of the split, and what is not worse than it at 95 % in a paired bootstrap over the test"
        f" structures{few}."
    )


def _counts(frame: pd.DataFrame, bold: str) -> str:
    """Return the sentence that says over how many fits the means go."""
    ours = frame[frame["source"] == "this run"]
    counts = sorted({int(n) for m in TABLE2_METRICS for n in ours[f"{m}_n"].dropna() if n})
    if not counts:
        return "No metric is defined for any fit."
    over = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]} (see the CSV)"
    return (
        f"Mean ± sample standard deviation over seeds and tasks, {over} fits a row; no ± where there is but "
        f"one. MAE in eV/Å, NLL a force component. {bold}"
    )


def _notes(frame: pd.DataFrame) -> list[str]:
    """Return the reasons for what is missing, each with its row; once, where it is that of all of a method's."""
    notes = []
    for method, rows in frame[frame["source"] == "this run"].groupby("method", sort=False):
        if len(rows) > 1 and rows["note"].nunique() == 1 and rows["note"].iloc[0]:
            notes.append(f"{method}, everywhere: {rows['note'].iloc[0]}")
            continue
        notes += [
            f"{row['split']}, {method}, {row['calibration']}: {row['note']}"
            for _, row in rows.iterrows()
            if row["note"]
        ]
    return notes


def _markdown(frame: pd.DataFrame, best: set[tuple[int, str]], decimals: int, bold: str) -> str:
    heads = [f"{_LABELS[m]} ({'↑' if m in _HIGHER_IS_BETTER else '↓'})" for m in TABLE2_METRICS]
    lines = [
        "| " + " | ".join(["Split", "Method", "Calibration", *heads]) + " |",
        "| --- | --- | --- |" + " ---: |" * len(heads),
    ]
    previous = None
    for i, row in frame.iterrows():
        paper = row["source"] == "paper"
        cells = [
            row["split"] if row["split"] != previous else "",
            f"*paper: {row['method']}*" if paper else row["method"],
            row["calibration"],
        ]
        for metric in TABLE2_METRICS:
            text = _cell(row, metric, decimals, " ± ")
            mark = "**" if (i, metric) in best else "*" if paper and text != "–" else ""
            cells.append(f"{mark}{text}{mark}")
        lines.append("| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |")
        previous = row["split"]
    lines += ["", _counts(frame, bold)]
    if (frame["source"] == "paper").any():
        lines.append(f"Rows in italics are the paper's own numbers ({paper_values()['citation']}).")
    if notes := _notes(frame):
        lines += ["", "Not defined:", "", *(f"* {note}" for note in notes)]
    return "\n".join(lines) + "\n"


_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "Å": r"\AA{}",
}


def tex(text: str) -> str:
    """Return a text with what LaTeX takes for its own escaped."""
    return "".join(_ESCAPES.get(c, c) for c in str(text))


def _latex(frame: pd.DataFrame, best: set[tuple[int, str]], decimals: int, bold: str) -> str:
    heads = " & ".join(rf"{_LABELS[m]} ($\{'up' if m in _HIGHER_IS_BETTER else 'down'}arrow$)" for m in TABLE2_METRICS)
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{tabular}{lll" + "r" * len(TABLE2_METRICS) + "}",
        r"\toprule",
        rf"Split & Method & Calibration & {heads} \\",
    ]
    previous = None
    for i, row in frame.iterrows():
        if row["split"] != previous:
            lines.append(r"\midrule")
        paper = row["source"] == "paper"
        method = rf"\textit{{paper: {tex(row['method'])}}}" if paper else tex(row["method"])
        cells = [
            tex(row["split"]) if row["split"] != previous else "",
            method,
            tex(row["calibration"]),
        ]
        for metric in TABLE2_METRICS:
            # A minus, not a hyphen: numbers are set in mathematics.
            number = _cell(row, metric, decimals, r" \pm ")
            text = "--" if pd.isna(row[f"{metric}_mean"]) else f"${number}$"
            if (i, metric) in best:
                text = rf"{{\boldmath{text}}}"
            cells.append(text)
        lines.append(" & ".join(cells) + r" \\")
        previous = row["split"]
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += ["% " + _counts(frame, bold), *(f"% not defined: {note}" for note in _notes(frame))]
    return "\n".join(lines) + "\n"
