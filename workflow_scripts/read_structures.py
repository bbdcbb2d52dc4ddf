"""Read a raw file into the structures schema."""

from pathlib import Path

from forceuq.data.sources import convert
from forceuq.provenance.jobs import recorded


def main(job) -> None:
    with recorded(job):
        convert(
            job.params.kind, Path(job.input.raw), Path(job.output.structures), job.params.options, threads=job.threads
        )


if __name__ == "__main__":
    main(snakemake)
