"""Cut a data set into its parts."""

from pathlib import Path

from forceuq.data.sources import load_source
from forceuq.provenance.jobs import recorded


def main(job) -> None:
    source = load_source(job.params.kind)
    with recorded(job):
        source.split(Path(job.input.structures), Path(job.output.splits), source.Options(**job.params.options))


if __name__ == "__main__":
    main(snakemake)
