"""One look for all figures: print sizes, colours that the colour-blind can tell apart, reproducible files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, SymmetricalLogLocator

from forceuq.files import whole_file

COLUMN_WIDTH = 3.25
PAGE_WIDTH = 6.75
"""Inches, of the paper's two-column page."""

# Okabe & Ito, "Color universal design" (2008), less the yellow, which print loses.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (6, 2)), (0, (3, 1)), "-")

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7.0,
    "axes.labelsize": 7.0,
    "axes.titlesize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.0,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.4,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "axes.unicode_minus": True,
}


def look(index: int) -> dict[str, Any]:
    """Return colour, marker and line style of the i-th series: of the first seven, any one of them tells."""
    # Every seven the markers and lines move on against the colours.
    turn = index // len(COLORS)
    return {
        "color": COLORS[index % len(COLORS)],
        "marker": MARKERS[(index + 3 * turn) % len(MARKERS)],
        "linestyle": LINES[(index + 2 * turn) % len(LINES)],
    }


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, laid out so that nothing is clipped or overlaps."""
    # A Figure of its own, not pyplot's: no display, no state shared between figures.
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)  # type: ignore[union-attr,call-arg]
    return figure


def save(figure: Figure, output: Path, data: pd.DataFrame) -> None:
    """Write ``output`` as .png (300 dpi), .pdf and .csv (the data shown). The bytes hold no dates."""
    with whole_file(output.with_suffix(".csv")) as temporary:
        data.to_csv(temporary, index=False, lineterminator="\n")
    with mpl.rc_context(RC):
        with whole_file(output.with_suffix(".pdf")) as temporary:
            figure.savefig(temporary, metadata={"CreationDate": None})
        with whole_file(output.with_suffix(".png")) as temporary:
            figure.savefig(temporary, metadata={"Software": "forceuq"})


def nll_axis(axes: Axes, values: np.ndarray[Any, Any]) -> bool:
    """Scale an NLL axis: linear, or symmetric-logarithmic if the values span too much; return which.

    An NLL may be negative, so a plain logarithm is no choice. The paper draws NLL + 1 on a logarithmic axis,
    which fails below -1; this one is linear within ±1 and shows the NLL itself.
    """
    finite = values[np.isfinite(values)]
    wide = bool(len(finite)) and (float(np.abs(finite).max()) > 10.0)
    if wide:
        axes.set_yscale("symlog", linthresh=1.0, linscale=0.6)
        decades = float(np.log10(np.abs(finite).max()))
        if decades < 3.5:
            axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10.0, linthresh=1.0, subs=[1.0, 3.0]))
        else:
            # Labels of every decade would lie over each other.
            powers = 10.0 ** np.arange(0, decades + 1, max(1, round(decades / 4)))
            axes.yaxis.set_major_locator(FixedLocator([*-powers[::-1], 0.0, *powers]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: _plain(x)))
    axes.set_ylabel("NLL per component" + ("\n(log beyond ±1)" if wide else ""))
    return wide


def error_axis(axes: Axes, values: np.ndarray[Any, Any], label: str) -> bool:
    """Scale an axis of errors: linear from zero, or logarithmic if they span more than a factor of 30; return which.

    Args:
        axes: to be scaled.
        values: positive where they are finite and not zero.
        label: of the axis.
    """
    finite = values[np.isfinite(values) & (values > 0.0)]
    wide = bool(len(finite)) and float(finite.max()) > 30.0 * float(finite.min())
    if wide:
        axes.set_yscale("log", nonpositive="clip")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: _plain(x)))
    else:
        axes.set_ylim(bottom=0.0)
    axes.set_ylabel(f"{label}\n(log)" if wide else label)
    return wide


def _plain(value: float) -> str:
    if abs(value) < 1e4:
        return f"{value:g}".replace("-", "\N{MINUS SIGN}")
    sign = "-" if value < 0 else ""
    return f"${sign}10^{{{np.log10(abs(value)):.0f}}}$"


def legend_columns(labels: Sequence[str], most: int = 5) -> int:
    """Return how many columns of a legend of lines fit across the page."""
    inches = 0.75 + 0.055 * max(map(len, labels))
    return max(1, min(most, len(labels), int(PAGE_WIDTH / inches)))


def split_ticks(axes: Axes, labels: list[str], characters: int) -> None:
    """Label the x axis 0, 1, ... with ``labels``, aslant if together they have more than ``characters``."""
    aslant = sum(len(label) + 2 for label in labels) > characters + 2
    axes.set_xticks(range(len(labels)), labels)
    if aslant:
        for text in axes.get_xticklabels():
            text.set(rotation=30, ha="right", rotation_mode="anchor")
