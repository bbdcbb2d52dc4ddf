"""Write the force head of a backbone to a file of its own."""

from pathlib import Path

from forceuq.features.extract import export_head
from forceuq.logs import logged


def main(job) -> None:
    with logged(job.log[0]):
        export_head(Path(job.input.weights), job.params.kind, job.params.options, Path(job.output.head))


if __name__ == "__main__":
    main(snakemake)
