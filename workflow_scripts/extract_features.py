"""Compute and cache the atom features of one shard of one part of a data set."""

from pathlib import Path

from forceuq.features.extract import extract_features
from forceuq.measurement import measured
from forceuq.provenance.jobs import recorded


def main(job) -> None:
    output = Path(job.output.features)
    execution = job.params.execution
    with recorded(job), measured(output, job.threads) as cost:
        done = extract_features(
            structures=Path(job.input.structures),
            splits=Path(job.input.splits),
            dataset=job.wildcards.dataset,
            part=job.wildcards.part,
            shard=int(job.wildcards.shard),
            shards=int(job.wildcards.shards),
            weights=Path(job.input.weights),
            kind=job.params.kind,
            options=job.params.options,
            output=output,
            # Those that the job has a core for; the model has one of its own.
            **{**execution, "workers": min(execution["workers"], max(1, job.threads - 1))},
        )
        cost.atoms, cost.work_seconds, cost.work = done.atoms, done.seconds, done.record()


if __name__ == "__main__":
    main(snakemake)
