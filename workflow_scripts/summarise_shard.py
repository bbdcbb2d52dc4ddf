"""Write the statistics of one shard's features under one head."""

from pathlib import Path

from forceuq.methods import load_method
from forceuq.provenance.jobs import recorded


def main(job) -> None:
    with recorded(job):
        load_method(job.wildcards.kind).summarise_shard(
            Path(job.input.features), Path(job.params.head), Path(job.output.statistics)
        )


if __name__ == "__main__":
    main(snakemake)
