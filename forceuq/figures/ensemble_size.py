"""The metrics of an ensemble over its number of members."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from forceuq.errors import DataError
from forceuq.figures.style import PAGE_WIDTH, RC, look, new_figure, nll_axis, save
from forceuq.metric_tables import read_frame
from forceuq.metrics import METRICS
from forceuq.tables import CALIBRATION_LABELS, aggregate

_LABELS = {
    "mae": "MAE (eV/Å)",
    "rmse": "RMSE (eV/Å)",
    "ece": "ECE",
    "spearman": "Spearman",
    "mahalanobis": "Mahalanobis²",
    "sharpness": "sharpness (eV/Å)",
    "coverage_50": "coverage of 50 %",
    "coverage_90": "coverage of 90 %",
    "coverage_95": "coverage of 95 %",
    "ause": "AUSE",
}
_COLUMNS = 4


def ensemble_size_figure(
    metrics: Path,
    output: Path,
    dataset: str,
    sizes: Mapping[int, str],
    splits: Mapping[str, str],
    *,
    calibration: str = "decoupled",
    title: str = "",
) -> None:
    """Draw every metric over the number of members, a line a split.

    Means over tasks and ensembles; shaded, ± one standard deviation where there are at least two. A value that
    is not defined leaves a gap, and its reason is in the CSV.

    Args:
        metrics: the merged metrics.
        output: where; .png, .pdf and .csv are written.
        dataset: the data set shown.
        sizes: method by number of members.
        splits: labels of the splits by name, in order.
        calibration: the calibration under which all are shown.
        title: above all.

    Raises:
        DataError: the metrics lack an ensemble on a split.
    """
    means = aggregate(read_frame(metrics, "metrics"))
    means = means[(means["dataset"] == dataset) & (means["calibration"] == calibration)]
    members = {method: size for size, method in sizes.items()}
    data = means[means["method"].isin(list(members)) & means["split"].isin(list(splits))].copy()
    for method in members:
        for split in splits:
            if not ((data["method"] == method) & (data["split"] == split)).any():
                raise DataError(f"has nothing of {method} under '{calibration}' on {dataset}/{split}", file=metrics)
    data.insert(3, "members", data["method"].map(members))
    data.insert(2, "label", data["split"].map(dict(splits)))
    data["mean"], data["std"] = data["mean"].astype(float), data["std"].astype(float)
    data = data.sort_values(["metric", "split", "members"], ignore_index=True)
    with mpl.rc_context(RC):
        _draw(data, output, splits, f"{title} ({CALIBRATION_LABELS.get(calibration, calibration)})".strip())


def _draw(data: pd.DataFrame, output: Path, splits: Mapping[str, str], title: str) -> None:
    rows = -(-len(METRICS) // _COLUMNS)
    figure = new_figure(PAGE_WIDTH, 0.5 + 1.35 * rows)
    grid = figure.subplots(rows, _COLUMNS, sharex=True).ravel()
    for axes, metric in zip(grid, METRICS, strict=False):
        _panel(axes, data[data["metric"] == metric], metric, splits)
    for axes in grid[len(METRICS) :]:
        axes.set_axis_off()
    for axes in grid[len(METRICS) - _COLUMNS : len(METRICS)]:
        axes.set_xlabel("members")
        axes.tick_params(labelbottom=True)
    figure.suptitle(title, fontsize=8)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), handlelength=3.0)
    save(figure, output, data)


def _panel(axes: Axes, data: pd.DataFrame, metric: str, splits: Mapping[str, str]) -> None:
    if metric == "nll":
        nll_axis(axes, data["mean"].to_numpy())
    else:
        axes.set_ylabel(_LABELS[metric])
    for index, (split, label) in enumerate(splits.items()):
        own = data[data["split"] == split]
        style = look(index)
        axes.plot(own["members"], own["mean"], label=label, mec="white", mew=0.4, **style)
        low, high = own["mean"] - own["std"], own["mean"] + own["std"]
        axes.fill_between(own["members"], low, high, color=style["color"], alpha=0.15, linewidth=0)
    if metric.startswith("coverage"):
        axes.axhline(int(metric.rpartition("_")[2]) / 100, color="#888888", linewidth=0.6, zorder=0)
    if metric == "mahalanobis":
        if data["mean"].max() > 100.0:
            axes.set_yscale("log")
        axes.axhline(3.0, color="#888888", linewidth=0.6, zorder=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
