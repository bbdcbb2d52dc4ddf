"""Draw Figure 3: the metrics as the distribution shifts."""

from pathlib import Path

from forceuq.figures.shift import shift_figure
from forceuq.logs import logged


def main(job) -> None:
    with logged(job.log[0]):
        shift_figure(
            Path(job.input.metrics),
            Path(job.output.png),
            job.params.splits,
            job.params.methods,
            job.params.datasets,
            calibration=job.params.calibration,
        )


if __name__ == "__main__":
    main(snakemake)
