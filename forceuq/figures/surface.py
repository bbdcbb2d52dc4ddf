"""Figure 1: the validation NLL over the two factors of the covariance."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from forceuq.calibration import nll_surface, read_calibrations
from forceuq.errors import DataError
from forceuq.figures.style import COLUMN_WIDTH, PAGE_WIDTH, RC, new_figure, save
from forceuq.parquet_schema import open_parquet

_MARKS = {
    "none": ("^", "#F0E442", 36, "raw"),
    "temperature": ("s", "#ffffff", 28, "best temperature"),
    "decoupled": ("*", "#D55E00", 90, "optimum"),
}
# Contours crowd where the NLL explodes (a and b far too small): it is shown to this far above its least.
_SHOWN = 6.0
_LEGEND: dict[str, Any] = {"handletextpad": 0.4, "columnspacing": 1.0, "borderaxespad": 0.1}


def write_surfaces(
    fits: Sequence[tuple[Path, Path, Path, str]],
    output: Path,
    title: str = "",
    *,
    log10_a: tuple[float, float],
    log10_b: tuple[float, float],
    points: int,
) -> None:
    """Compute the surface of each method, and draw Figure 1.

    Args:
        fits: of each method its validation predictions, its calibrations, where its surface goes, its label.
        output: where the figure goes.
        title: above all.
        log10_a: range of log10 a.
        log10_b: range of log10 b.
        points: of the grid along each axis.
    """
    grids = [np.linspace(*ends, points).tolist() for ends in (log10_a, log10_b)]
    for predictions, _, surface, _ in fits:
        nll_surface(predictions, surface, grids[0], grids[1])
    surface_figure([(surface, calibrations, label) for _, calibrations, surface, label in fits], output, title)


def surface_figure(surfaces: Sequence[tuple[Path, Path, str]], output: Path, title: str = "", columns: int = 4) -> None:
    """Draw Figure 1: contours of the validation NLL over log10 a and log10 b, a panel a method.

    One method alone is shown with its NLL; of several, each with its NLL above its own least, on one scale.

    Args:
        surfaces: of each method what ``forceuq.calibration.nll_surface`` wrote, what ``fit_calibrations`` wrote
            for the same predictions, and its label. Of the calibrations, those of the kinds none (triangle),
            temperature (square) and decoupled (star) are marked.
        output: where; .png, .pdf and .csv are written.
        title: above all.
        columns: of panels, at most.

    Raises:
        DataError: a file that cannot be used, or calibrations of other predictions than the surface's.
    """
    panels = [_read(surface, calibrations).assign(method=label) for surface, calibrations, label in surfaces]
    with mpl.rc_context(RC):
        if len(panels) == 1:
            _alone(panels[0], output, title)
        else:
            _side_by_side(panels, output, title, min(columns, len(panels)))


def _read(surface: Path, calibrations: Path) -> pd.DataFrame:
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
    data: pd.DataFrame = pd.concat([points, grid.assign(what="surface")], ignore_index=True)
    return data


def _alone(data: pd.DataFrame, output: Path, title: str) -> None:
    figure = new_figure(COLUMN_WIDTH, 2.75)
    axes = figure.add_subplot()
    outside = _panel(axes, data, above=0.0)
    _bar(figure, axes, [axes], "validation NLL per component")
    if title or outside:
        axes.set_title("\n".join([*([title] if title else []), *outside]))
    axes.set_xlabel(r"$\log_{10}\,a$ (floor)")
    axes.set_ylabel(r"$\log_{10}\,b$ (spread)")
    figure.legend(loc="outside lower center", ncols=4, **_LEGEND)
    save(figure, output, data)


def _side_by_side(panels: Sequence[pd.DataFrame], output: Path, title: str, columns: int) -> None:
    rows = -(-len(panels) // columns)
    figure = new_figure(PAGE_WIDTH, 0.9 + 1.5 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, data in zip(grid.ravel(), panels, strict=False):
        least = float(data.loc[data["what"] == "surface", "nll"].min())
        outside = _panel(axes, data, above=least)
        axes.set_title(
            "\n".join([data["method"].iloc[0], f"least: {least:.2f}".replace("-", "\N{MINUS SIGN}"), *outside])
        )
        axes.title.set_fontsize(6.5)
    for axes in grid.ravel()[len(panels) :]:
        axes.set_axis_off()
    _bar(figure, grid[0][0], list(grid.ravel()), "NLL per component above its least")
    for axes in grid.ravel()[max(0, len(panels) - columns) : len(panels)]:
        axes.set_xlabel(r"$\log_{10}\,a$ (floor)")
        axes.tick_params(labelbottom=True)
    for axes in grid[:, 0]:
        axes.set_ylabel(r"$\log_{10}\,b$ (spread)")
    if title:
        figure.suptitle(title, fontsize=8)
    entries: dict[str, Any] = {}
    for axes in grid.ravel():
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=len(entries), **_LEGEND)
    save(figure, output, pd.concat(panels, ignore_index=True))


def _bar(figure: Figure, filled_in: Axes, beside: Sequence[Axes], label: str) -> None:
    filled = filled_in.collections[0]
    bar = figure.colorbar(filled, ax=beside, pad=0.02, ticks=MaxNLocator(7), spacing="proportional")
    bar.set_label(label)
    bar.outline.set_linewidth(0.6)


def _panel(axes: Axes, data: pd.DataFrame, above: float) -> list[str]:
    """Draw one method's surface, less ``above``; return which marks are off the map, and where."""
    table = data[data["what"] == "surface"].pivot(index="log10_b", columns="log10_a", values="nll")
    a, b, nll = table.columns.to_numpy(), table.index.to_numpy(), table.to_numpy() - above
    axes.grid(False)
    # Evenly spaced levels leave the valley empty; these are dense near the least value.
    levels = float(nll.min()) + _SHOWN * np.linspace(0.0, 1.0, 19) ** 2
    axes.contourf(a, b, nll, levels=levels, cmap="viridis", extend="max")
    axes.contour(a, b, nll, levels=levels[1:-1:2], colors="white", linewidths=0.3, alpha=0.6)

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
                outside.append(f"{label} off: ({x:.1f}, {y:.1f})".replace("-", "\N{MINUS SIGN}"))
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
    return outside
