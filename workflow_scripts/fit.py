"""Fit one method to one task with one seed."""

from pathlib import Path

from forceuq.checkpoints import checkpoints_of
from forceuq.measurement import measured
from forceuq.methods import BackboneSource, TrainingData, load_method, structure_parts
from forceuq.provenance.jobs import recorded
from forceuq.scratch import near


def main(job) -> None:
    method = load_method(job.params.kind)
    start = job.input.get("start")
    backbone = job.params.backbone
    devices = {"devices": job.resources.devices} if job.resources.devices > 1 else {}
    statistics = job.input.get("statistics", [])
    with (
        checkpoints_of(Path(job.params.checkpoints), job.params.code) as checkpoints,
        recorded(job),
        measured(Path(job.output.fit), job.threads),
        near(tuple(map(Path, job.input.train)), read_again=bool(job.resources.rereads)) as train,
    ):
        fitted = method.fit(
            TrainingData(
                train=train,
                validation=tuple(map(Path, job.input.validation)),
                head=Path(job.input.head),
                train_structures=structure_parts(job.params.train_parts),
                validation_structures=structure_parts(job.params.validation_parts),
                backbone=BackboneSource(weights=Path(job.input.weights), **backbone) if backbone else None,
                statistics=tuple(map(Path, [statistics] if isinstance(statistics, str) else statistics)),
            ),
            method.Options(**job.params.options, **devices),
            seed=int(job.wildcards.seed),
            checkpoints=checkpoints,
            starts_from=Path(str(start)) if start else None,
        )
        fitted.save(Path(job.output.fit))


if __name__ == "__main__":
    main(snakemake)
