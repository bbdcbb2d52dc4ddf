"""Predict every split of a task with one fitted method."""

from pathlib import Path

from forceuq.measurement import measured
from forceuq.methods import BackboneSource, load_method, structure_parts
from forceuq.predictions import write_predictions
from forceuq.provenance.jobs import recorded


def main(job) -> None:
    labels = {**dict(job.wildcards.items()), "seed": int(job.wildcards.seed)}
    backbone = job.params.backbone
    source = BackboneSource(weights=Path(job.input.weights), **backbone) if backbone else None
    output = Path(job.output.predictions)
    with recorded(job):
        fitted = load_method(job.params.kind).load(Path(job.input.fit), source)
        with measured(output, job.threads) as cost:
            cost.atoms = 0
            for split, parts in job.params.splits.items():
                folders = job.input.get(f"split_{split}")
                folders = [folders] if isinstance(folders, str) else folders
                cost.atoms += write_predictions(
                    output / f"{split}.parquet",
                    fitted.predict([Path(folder) for folder in folders], structure_parts(parts)),
                    {**labels, "split": split},
                )


if __name__ == "__main__":
    main(snakemake)
