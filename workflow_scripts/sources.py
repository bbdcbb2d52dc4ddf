"""Write where raw data and weights come from, and their licences."""

from pathlib import Path

from forceuq.provenance.jobs import recorded
from forceuq.sources import write_sources


def main(job) -> None:
    with recorded(job):
        write_sources(job.params.configuration, Path(job.output.csv))


if __name__ == "__main__":
    main(snakemake)
