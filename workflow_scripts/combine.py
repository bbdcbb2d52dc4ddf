"""Combine the predictions of several fits into an ensemble's."""

from pathlib import Path

from forceuq.methods import load_method
from forceuq.predictions import write_predictions
from forceuq.provenance.jobs import recorded


def main(job) -> None:
    labels = {**dict(job.wildcards.items()), "seed": int(job.wildcards.seed)}
    method = load_method(job.params.kind)
    with recorded(job):
        for split in job.params.splits:
            members = [Path(folder) / f"{split}.parquet" for folder in job.input.members]
            write_predictions(
                Path(job.output.predictions) / f"{split}.parquet",
                method.combine(members, method.Options(**job.params.options)),
                {**labels, "split": split},
            )


if __name__ == "__main__":
    main(snakemake)
