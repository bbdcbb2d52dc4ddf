"""Draw Figure 2: ECE and NLL before and after the rescaling."""

from pathlib import Path

from forceuq.figures.recalibration import recalibration_figure
from forceuq.logs import logged


def main(job) -> None:
    with logged(job.log[0]):
        recalibration_figure(
            Path(job.input.metrics),
            Path(job.output.png),
            job.params.method,
            job.params.splits,
            job.params.datasets,
            before=job.params.before,
            after=job.params.after,
        )


if __name__ == "__main__":
    main(snakemake)
