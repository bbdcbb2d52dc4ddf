"""Read a raw file into the structures schema."""

from pathlib import Path

from forceuq.data.sources import load_source
from forceuq.provenance.jobs import recorded


def main(job) -> None:
    source = load_source(job.params.kind)
    with recorded(job):
        source.convert(Path(job.input.raw), Path(job.output.structures), source.Options(**job.params.options))


if __name__ == "__main__":
    main(snakemake)
