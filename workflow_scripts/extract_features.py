"""Compute and cache the atom features of one shard of one part of a data set."""

from pathlib import Path

from forceuq.features.extract import extract_features
from forceuq.measurement import measured
from forceuq.provenance.jobs import recorded


def main(job) -> None:
    output = Path(job.output.features)
    resources = job.resources
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
            precision=job.params.precision,
            max_atoms_per_batch=resources.max_atoms_per_batch,
            max_edges_per_batch=resources.max_edges_per_batch,
            atoms_per_file=resources.atoms_per_file,
            # Those that the job has a core for; the model has one of its own.
            workers=min(resources.workers, max(1, job.threads - 1)),
            device=resources.device,
        )
        cost.atoms, cost.work_seconds, cost.work = done.atoms, done.seconds, done.record()


if __name__ == "__main__":
    main(snakemake)
