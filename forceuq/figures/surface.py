"""Figure 1: the validation NLL over the two factors of the covariance."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.ticker import MaxNLocator

from forceuq.calibration import read_calibrations
from forceuq.errors import DataError
from forceuq.figures.style import COLUMN_WIDTH, RC, new_figure, save
from forceuq.parquet_schema import open_parquet

_MARKS = {
    "none": ("^", "#F0E442", 36, "raw"),
    "temperature": ("s", "#ffffff", 28, "best temperature"),
    "decoupled": ("*", "#D55E00", 90, "optimum"),
}
# Contours crowd where the NLL explodes (a and b far too small): it is shown to this far above its least.
_SHOWN = 6.0


def surface_figure(surface: Path, calibrations: Path, output: Path, title: str = "") -> None:
    """Draw Figure 1: contours of the validation NLL over log10 a and log10 b.

    Args:
        surface: what ``forceuq.calibration.nll_surface`` wrote.
        calibrations: what ``fit_calibrations`` wrote for the same predictions; those of the kinds none
            (triangle), temperature (square) and decoupled (star) that it holds are marked.
        output: where; .png, .pdf and .csv are written.
        title: above the axes.

    Raises:
        DataError: a file that cannot be used, or calibrations of other predictions than the surface's.
    """
    parquet, metadata = open_parquet(surface, "nll-surface", 1)
    with parquet:
        grid = parquet.read().to_pandas()
    marks = read_calibrations(calibrations)
    for mark in marks:
        for key in ("dataset", "task", "method", "seed"):
            if mark.fitted_on.get(key) != metadata.get(key):
                raise DataError(
                    f"was fitted on {key} '{mark.fitted_on.get(key)}'; the surface is of '{metadata.get(key)}'",
                    file=calibrations,
                )
    points = pd.DataFrame(
        {
            "what": [m.kind for m in marks],
            "log10_a": [float(np.log10(m.a)) for m in marks],
            "log10_b": [float(np.log10(m.b)) for m in marks],
            "nll": [m.nll_after for m in marks],
        }
    )
    data = pd.concat([points, grid.assign(what="surface")], ignore_index=True)
    with mpl.rc_context(RC):
        _draw(data, output, title)


def _draw(data: pd.DataFrame, output: Path, title: str) -> None:
    table = data[data["what"] == "surface"].pivot(index="log10_b", columns="log10_a", values="nll")
    a, b, nll = table.columns.to_numpy(), table.index.to_numpy(), table.to_numpy()
    least = float(nll.min())

    figure = new_figure(COLUMN_WIDTH, 2.75)
    axes = figure.add_subplot()
    axes.grid(False)
    # Evenly spaced levels leave the valley empty; these are dense near the least value.
    levels = least + _SHOWN * np.linspace(0.0, 1.0, 19) ** 2
    filled = axes.contourf(a, b, nll, levels=levels, cmap="viridis", extend="max")
    axes.contour(a, b, nll, levels=levels[1:-1:2], colors="white", linewidths=0.3, alpha=0.6)
    bar = figure.colorbar(filled, ax=axes, pad=0.02, ticks=MaxNLocator(7), spacing="proportional")
    bar.set_label("validation NLL per component")
    bar.outline.set_linewidth(0.6)

    low, high = max(a[0], b[0]), min(a[-1], b[-1])
    if low < high:
        # Edged in black: white alone vanishes on the map's brightest part, and on paper in the legend.
        edge = [patheffects.withStroke(linewidth=2.0, foreground="black")]
        axes.plot([low, high], [low, high], color="white", lw=1.0, ls="--", label="a = b", path_effects=edge)
    outside = []
    for kind, (marker, color, size, label) in _MARKS.items():
        for _, point in data[data["what"] == kind].iterrows():
            x, y = point["log10_a"], point["log10_b"]
            if not (a[0] <= x <= a[-1] and b[0] <= y <= b[-1]):
                outside.append(f"{label} at ({x:.1f}, {y:.1f}), off the map")
                continue
            axes.scatter(
                x,
                y,
                marker=marker,
                s=size,
                color=color,
                edgecolors="black",
                linewidths=0.6,
                label=label,
                zorder=5,
            )
    axes.set(xlim=(a[0], a[-1]), ylim=(b[0], b[-1]))
    axes.set_xlabel(r"$\log_{10}\,a$ (floor)")
    axes.set_ylabel(r"$\log_{10}\,b$ (spread)")
    if title or outside:
        axes.set_title("\n".join([*([title] if title else []), *outside]))
    figure.legend(loc="outside lower center", ncols=4, handletextpad=0.4, columnspacing=1.0, borderaxespad=0.1)
    save(figure, output, data)
