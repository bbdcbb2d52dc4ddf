"""The paper's figures, each written as PNG and PDF with the data that it shows beside it as CSV."""

from forceuq.figures.recalibration import recalibration_figure
from forceuq.figures.shift import shift_figure
from forceuq.figures.surface import surface_figure

__all__ = ["recalibration_figure", "shift_figure", "surface_figure"]
