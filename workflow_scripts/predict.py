"""Predict every split of a task with one fitted method."""

from pathlib import Path

from forceuq.logs import logged
from forceuq.methods import load_method
from forceuq.predictions import write_predictions


def main(job) -> None:
    labels = {**dict(job.wildcards.items()), "seed": int(job.wildcards.seed)}
    with logged(job.log[0]):
        fitted = load_method(job.params.kind).load(Path(job.input.fit))
        for split in job.params.splits:
            folders = job.input.get(f"split_{split}")
            folders = [folders] if isinstance(folders, str) else folders
            write_predictions(
                Path(job.output.predictions) / f"{split}.parquet",
                fitted.predict([Path(folder) for folder in folders]),
                {**labels, "split": split},
            )


if __name__ == "__main__":
    main(snakemake)
