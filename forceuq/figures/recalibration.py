"""Figure 2: what the rescaling does to calibration and likelihood, split by split."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from forceuq.errors import DataError
from forceuq.figures.style import COLORS, PAGE_WIDTH, RC, new_figure, nll_axis, save, split_ticks
from forceuq.metric_tables import read_frame
from forceuq.tables import CALIBRATION_LABELS, SplitLabels, aggregate

_MINUS = "\N{MINUS SIGN}"


def recalibration_figures(
    metrics: Path,
    outputs: Mapping[str, Path],
    methods: Mapping[str, str],
    splits: SplitLabels,
    datasets: Mapping[str, str],
    *,
    fitted_to: Mapping[str, Sequence[str]] | None = None,
    before: str = "none",
    after: str = "decoupled",
) -> None:
    """Draw Figure 2 of each method: ECE (top) and NLL (bottom) before and after rescaling, a column a dataset.

    Means over seeds and tasks, bars ± one standard deviation. Annotated: the relative change of the ECE, and
    the difference of the NLL (which has no relative change, since it may be negative).

    Args:
        metrics: the merged metrics.
        outputs: where, by method; .png, .pdf and .csv are written.
        methods: labels of the methods by name, above the figures.
        splits: (dataset, split, label) in order; a label stands under its points.
        datasets: titles of the columns by dataset, in order.
        fitted_to: the data sets that each method is fitted to; without it every method must be on every data set.
        before: the calibration to start from.
        after: the calibration to end at.

    Raises:
        DataError: the metrics lack a split of a method under either calibration.
    """
    means = aggregate(read_frame(metrics, "metrics"))
    for method, output in outputs.items():
        shown = {name: label for name, label in datasets.items() if fitted_to is None or name in fitted_to[method]}
        data = _data(means, metrics, method, splits, shown, (before, after))
        with mpl.rc_context(RC):
            _draw(data, output, shown, (before, after), methods[method])


def _data(
    means: pd.DataFrame,
    metrics: Path,
    method: str,
    splits: SplitLabels,
    datasets: Mapping[str, str],
    kinds: tuple[str, str],
) -> pd.DataFrame:
    rows = []
    for dataset, split, label in splits:
        if dataset not in datasets:
            continue
        for metric in ("ece", "nll"):
            row: dict[str, object] = {
                "dataset": dataset,
                "split": split,
                "label": label,
                "method": method,
                "metric": metric,
            }
            for name, calibration in zip(("before", "after"), kinds, strict=True):
                found = means[
                    (means["dataset"] == dataset)
                    & (means["split"] == split)
                    & (means["method"] == method)
                    & (means["calibration"] == calibration)
                    & (means["metric"] == metric)
                ]
                if len(found) != 1:
                    raise DataError(
                        f"has no {metric} of {method} under '{calibration}' on {dataset}/{split}",
                        file=metrics,
                    )
                row |= {name: found["mean"].iloc[0], f"{name}_std": found["std"].iloc[0]}
                row["n"] = found["n"].iloc[0]
            rows.append(row)
    if not rows:
        raise DataError(f"no split belongs to the datasets {', '.join(datasets)}", file=metrics)
    data = pd.DataFrame(rows)
    for column in ("before", "before_std", "after", "after_std"):
        data[column] = data[column].astype(float)
    return data


def _draw(data: pd.DataFrame, output: Path, datasets: Mapping[str, str], kinds: tuple[str, str], title: str) -> None:
    shown = [name for name in datasets if name in set(data["dataset"])]
    widths = [max(2, data[data["dataset"] == name]["split"].nunique()) for name in shown]
    figure = new_figure(min(PAGE_WIDTH, 0.75 + 0.85 * sum(widths)), 3.6)
    grid = figure.subplots(2, len(shown), squeeze=False, width_ratios=widths, sharex="col")
    for column, name in enumerate(shown):
        for row, metric in enumerate(("ece", "nll")):
            axes = grid[row][column]
            _panel(axes, data[(data["dataset"] == name) & (data["metric"] == metric)], metric)
            if column:
                axes.set_ylabel("")
        grid[0][column].set_title(datasets[name])
    if title:
        figure.suptitle(title, fontsize=8)
    handles = [
        Line2D([], [], linestyle="", marker="o", mfc="white", mec=COLORS[1], color=COLORS[1]),
        Line2D([], [], linestyle="", marker="s", color=COLORS[0]),
    ]
    figure.legend(handles, [CALIBRATION_LABELS.get(kind, kind) for kind in kinds], loc="outside lower center", ncols=2)
    save(figure, output, data)


def _panel(axes: Axes, data: pd.DataFrame, metric: str) -> None:
    """Draw one metric of one dataset: before and after side by side, joined, the change written above."""
    values = data[["before", "after"]].to_numpy()
    if metric == "nll":
        nll_axis(axes, values)
    else:
        axes.set_ylabel("ECE")
    x = np.arange(len(data))
    shift = 0.13
    for i, (_, point) in enumerate(data.iterrows()):
        axes.plot([i - shift, i + shift], [point["before"], point["after"]], color="#888888", linewidth=0.8)
    style: dict[str, Any] = {"linestyle": "", "elinewidth": 0.8, "capsize": 2.0}
    axes.errorbar(
        x - shift,
        values[:, 0],
        yerr=data["before_std"].fillna(0.0),
        fmt="o",
        mfc="white",
        color=COLORS[1],
        **style,
    )
    axes.errorbar(x + shift, values[:, 1], yerr=data["after_std"].fillna(0.0), fmt="s", color=COLORS[0], **style)
    tops = np.nanmax(
        [
            data["before"] + data["before_std"].fillna(0.0),
            data["after"] + data["after_std"].fillna(0.0),
        ],
        axis=0,
    )
    for i, (_, point) in enumerate(data.iterrows()):
        if not np.isfinite(point[["before", "after"]].to_numpy(dtype=float)).all():
            continue
        change = point["after"] - point["before"]
        if metric == "ece":
            text = f"{100.0 * change / point['before']:+.0f}%" if point["before"] else ""
        else:
            text = f"{change:+.2f}" if abs(change) < 10 else f"{change:+.0f}"
        axes.annotate(
            text.replace("-", _MINUS),
            (i, tops[i]),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=6.5,
        )
    axes.margins(y=0.18)
    if metric == "ece":
        axes.set_ylim(bottom=0.0)
    axes.set_xlim(-0.5, len(data) - 0.5)
    split_ticks(axes, data["label"].tolist(), characters=14 * len(data))
    axes.grid(axis="x", visible=False)
