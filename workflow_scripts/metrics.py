"""Evaluate every split's predictions under every calibration."""

from pathlib import Path

from forceuq.metrics import evaluate_predictions
from forceuq.provenance.jobs import recorded


def main(job) -> None:
    labels = {**dict(job.wildcards.items()), "seed": int(job.wildcards.seed)}
    with recorded(job):
        for split in job.params.splits:
            evaluate_predictions(
                Path(job.input.predictions) / f"{split}.parquet",
                Path(job.input.calibrations),
                Path(job.output.metrics) / f"{split}.parquet",
                Path(job.output.curves) / f"{split}.parquet",
                {**labels, "split": split},
            )


if __name__ == "__main__":
    main(snakemake)
