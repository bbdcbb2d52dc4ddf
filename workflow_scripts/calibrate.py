"""Fit the post-hoc rescalings of the covariance on the validation split."""

from pathlib import Path

from forceuq.calibration import fit_calibrations
from forceuq.provenance.jobs import recorded


def main(job) -> None:
    with recorded(job):
        fit_calibrations(
            Path(job.input.predictions) / "validation.parquet",
            Path(job.output.calibrations),
            job.params.kinds,
        )


if __name__ == "__main__":
    main(snakemake)
