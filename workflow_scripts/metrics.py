"""Evaluate every split's predictions under every calibration."""

from pathlib import Path

from forceuq.logs import logged
from forceuq.metrics import evaluate_predictions


def main(job) -> None:
    labels = {**dict(job.wildcards.items()), "seed": int(job.wildcards.seed)}
    with logged(job.log[0]):
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
