"""Draw the metrics of an ensemble over its number of members."""

from pathlib import Path

from forceuq.figures.ensemble_size import ensemble_size_figure
from forceuq.provenance.jobs import recorded


def main(job) -> None:
    with recorded(job):
        ensemble_size_figure(
            Path(job.input.metrics),
            Path(job.output.png),
            job.wildcards.dataset,
            dict(job.params.sizes),
            dict(job.params.splits),
            calibration=job.params.calibration,
            title=job.params.title,
        )


if __name__ == "__main__":
    main(snakemake)
