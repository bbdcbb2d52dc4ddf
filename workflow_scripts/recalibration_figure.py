"""Draw Figure 2: ECE and NLL before and after the rescaling."""

from pathlib import Path

from forceuq.figures.recalibration import recalibration_figures
from forceuq.provenance.jobs import recorded


def main(job) -> None:
    with recorded(job):
        recalibration_figures(
            Path(job.input.metrics),
            dict(zip(job.params.methods, map(Path, job.output.png), strict=True)),
            job.params.methods,
            job.params.splits,
            job.params.datasets,
            fitted_to=job.params.fitted_to,
            before=job.params.before,
            after=job.params.after,
        )


if __name__ == "__main__":
    main(snakemake)
