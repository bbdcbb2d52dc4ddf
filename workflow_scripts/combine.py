"""Combine the predictions of several fits into an ensemble's."""

from pathlib import Path

from forceuq.logs import logged
from forceuq.methods import load_method
from forceuq.predictions import write_predictions


def main(job) -> None:
    labels = {**dict(job.wildcards.items()), "seed": int(job.wildcards.seed)}
    method = load_method(job.params.kind)
    with logged(job.log[0]):
        for split in job.params.splits:
            members = [Path(folder) / f"{split}.parquet" for folder in job.input.members]
            write_predictions(
                Path(job.output.predictions) / f"{split}.parquet",
                method.combine(members, method.Options(**job.params.options)),
                {**labels, "split": split},
            )


if __name__ == "__main__":
    main(snakemake)
