"""Compute and draw Figure 1: the validation likelihood over a and b."""

from pathlib import Path

import numpy as np

from forceuq.calibration import nll_surface
from forceuq.figures.surface import surface_figure
from forceuq.logs import logged


def main(job) -> None:
    grid = job.params.grid
    surface = Path(job.output.surface)
    with logged(job.log[0]):
        nll_surface(
            Path(job.input.predictions) / "validation.parquet",
            surface,
            np.linspace(*grid["log10_a"], grid["points"]),
            np.linspace(*grid["log10_b"], grid["points"]),
        )
        surface_figure(surface, Path(job.input.calibrations), Path(job.output.png), title=job.params.title)


if __name__ == "__main__":
    main(snakemake)
