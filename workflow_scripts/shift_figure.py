"""Draw Figure 3: the metrics as the distribution shifts."""

from pathlib import Path

from forceuq.figures.shift import shift_figure
from forceuq.provenance.jobs import recorded


def main(job) -> None:
    with recorded(job):
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
