"""Figure 3: accuracy, calibration, ranking and likelihood of each method as the data move away."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from forceuq.errors import DataError
from forceuq.figures.style import (
    PAGE_WIDTH,
    RC,
    error_axis,
    legend_columns,
    look,
    new_figure,
    nll_axis,
    save,
    split_ticks,
)
from forceuq.metric_tables import read_frame
from forceuq.tables import SplitLabels, aggregate

_PANELS = {
    "mae": "MAE (eV/Å)",
    "ece": "ECE",
    "spearman": "Spearman",
    "nll": "NLL per component",
}


def shift_figure(
    metrics: Path,
    output: Path,
    splits: SplitLabels,
    methods: Mapping[str, str],
    datasets: Mapping[str, str],
    *,
    calibration: str = "decoupled",
    title: str = "",
) -> None:
    """Draw Figure 3: MAE, ECE, Spearman and NLL over the ordered splits, a line a method, a row a dataset.

    Lines are means over seeds and tasks; shaded, ± one standard deviation where there are at least two. A
    value that is not defined leaves a gap, and its reason is in the CSV.

    Args:
        metrics: the merged metrics.
        output: where; .png, .pdf and .csv are written.
        splits: (dataset, split, label), in order of growing shift.
        methods: labels of the methods by name, in order.
        datasets: titles of the rows by dataset, in order.
        calibration: the calibration under which every method is shown.
        title: above all.

    Raises:
        DataError: the metrics have nothing of what is to be shown.
    """
    means = aggregate(read_frame(metrics, "metrics"))
    means = means[(means["calibration"] == calibration) & means["metric"].isin(list(_PANELS))]
    order = pd.DataFrame(list(splits), columns=["dataset", "split", "label"]).assign(order=range(len(splits)))
    data = means.merge(order, on=["dataset", "split"])
    data = data[data["dataset"].isin(list(datasets)) & data["method"].isin(list(methods))]
    if data.empty:
        raise DataError(f"has nothing of these splits and methods under '{calibration}'", file=metrics)
    data = data.sort_values(["order", "method", "metric"], ignore_index=True).drop(columns="order")
    data.insert(3, "method_label", data["method"].map(dict(methods)))
    for column in ("mean", "std"):
        data[column] = data[column].astype(float)
    with mpl.rc_context(RC):
        _draw(data, output, methods, datasets, title)


def _draw(
    data: pd.DataFrame, output: Path, methods: Mapping[str, str], datasets: Mapping[str, str], title: str
) -> None:
    shown = [name for name in datasets if name in set(data["dataset"])]
    columns = legend_columns(list(methods.values()))
    legend_rows = -(-len(methods) // columns)
    figure = new_figure(PAGE_WIDTH, 0.15 + 1.6 * len(shown) + 0.15 * legend_rows + (0.2 if title else 0.0))
    figure.get_layout_engine().set(wspace=0.05)  # type: ignore[union-attr,call-arg]
    grid = figure.subplots(len(shown), len(_PANELS), squeeze=False)
    for row, dataset in zip(grid, shown, strict=True):
        own = data[data["dataset"] == dataset]
        for axes, (metric, label) in zip(row, _PANELS.items(), strict=True):
            axes.set_ylabel(label)
            _panel(axes, own[own["metric"] == metric], metric, methods)
        row[0].set_title(datasets[dataset], loc="left")
    if title:
        figure.suptitle(title, fontsize=8)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=3.0)
    save(figure, output, data)


def _panel(axes: Axes, data: pd.DataFrame, metric: str, methods: Mapping[str, str]) -> None:
    labels = list(dict.fromkeys(data["label"]))
    x = np.arange(len(labels))
    if metric == "nll":
        nll_axis(axes, data["mean"].to_numpy())
    for index, (method, label) in enumerate(methods.items()):
        own = data[data["method"] == method].set_index("label").reindex(labels)
        style = look(index)
        mean, std = own["mean"].to_numpy(), own["std"].to_numpy()
        axes.plot(x, mean, label=label, mec="white", mew=0.4, **style)
        band = np.isfinite(mean) & np.isfinite(std)
        axes.fill_between(x, mean - std, mean + std, where=band.tolist(), color=style["color"], alpha=0.15, linewidth=0)
    axes.set_xlim(-0.3, len(labels) - 0.7)
    split_ticks(axes, labels, characters=20)
    if metric == "mae":
        error_axis(axes, data["mean"].to_numpy(), _PANELS["mae"])
    elif metric == "ece":
        axes.set_ylim(bottom=0.0)
