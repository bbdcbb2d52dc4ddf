"""Compute and draw Figure 1: the validation likelihood over a and b."""

from pathlib import Path

from forceuq.figures.surface import write_surfaces
from forceuq.provenance.jobs import recorded


def main(job) -> None:
    surfaces = Path(job.output.surfaces)
    with recorded(job):
        write_surfaces(
            [
                (Path(predictions) / "validation.parquet", Path(calibrations), surfaces / f"{method}.parquet", label)
                for predictions, calibrations, method, label in zip(
                    job.input.predictions, job.input.calibrations, job.params.methods, job.params.labels, strict=True
                )
            ],
            Path(job.output.png),
            job.params.title,
            **job.params.grid,
        )


if __name__ == "__main__":
    main(snakemake)
