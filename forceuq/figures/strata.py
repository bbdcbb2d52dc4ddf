"""Histogram of the energy above the relaxed structure, with the strata's boundaries."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from forceuq.data.strata import NAMES, NO_PART
from forceuq.figures.style import COLORS, PAGE_WIDTH, RC, new_figure, save

_TICKS = (-1.0, -0.1, -0.01, 0.0, 0.01, 0.1, 1.0, 10.0)


def strata_figure(histogram: pd.DataFrame, output: Path, boundaries: Sequence[float], title: str = "") -> None:
    """Draw how many structures of each part lie where above the relaxed structure; both axes grow logarithmically.

    Args:
        histogram: of ``forceuq.data.strata.count_strata``.
        output: where; .png, .pdf and .csv are written.
        boundaries: between the strata, eV/atom.
        title: above.
    """
    with mpl.rc_context(RC):
        _draw(histogram, output, boundaries, title)


def _draw(histogram: pd.DataFrame, output: Path, boundaries: Sequence[float], title: str) -> None:
    figure = new_figure(0.72 * PAGE_WIDTH, 2.5)
    axes = figure.subplots()
    edges = np.append(histogram["from"].unique(), histogram["to"].max())
    axes.set_xscale("asinh", linear_width=0.002)
    axes.set_yscale("log")
    axes.set_xlim(edges[0], edges[-1])
    total = histogram.groupby("from")["structures"].sum().to_numpy()
    axes.stairs(total, edges, fill=True, color="#dddddd", label="all")
    parts = [name for name in histogram["part"].unique() if name != NO_PART]
    for index, name in enumerate(parts):
        own = histogram[histogram["part"] == name]["structures"].to_numpy()
        axes.stairs(np.where(own > 0, own, np.nan), edges, color=COLORS[index % len(COLORS)], label=name, linewidth=1.2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    axes.set_ylim(0.7, 2.5 * total.max())
    for boundary in boundaries:
        axes.axvline(boundary, color="#444444", linewidth=0.7, linestyle=(0, (3, 2)))
    ends = np.arcsinh(np.array([edges[0], *boundaries, edges[-1]]) / 0.002)
    for name, middle in zip(NAMES, (ends[1:] + ends[:-1]) / 2, strict=True):
        place = (middle - ends[0]) / (ends[-1] - ends[0])
        if 0 <= place <= 1:
            axes.annotate(name, (place, 1.0), (0, -2), "axes fraction", "offset points", ha="center", va="top")
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in _TICKS if edges[0] <= tick <= edges[-1]]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}".replace("-", "\N{MINUS SIGN}")))
    axes.set_xlabel("energy above the relaxed structure (eV/atom)")
    axes.set_ylabel("structures in a bin")
    if title:
        axes.set_title(title, loc="left")
    figure.legend(loc="outside right upper")
    save(figure, output, histogram)
