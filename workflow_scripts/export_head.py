"""Write the force head of a backbone to a file of its own."""

from pathlib import Path

from forceuq.features.extract import export_head
from forceuq.provenance.jobs import recorded


def main(job) -> None:
    with recorded(job):
        export_head(Path(job.input.weights), job.params.kind, job.params.options, Path(job.output.head))


if __name__ == "__main__":
    main(snakemake)
