"""Fetch one published file and hold it to its checksum."""

from pathlib import Path

from forceuq.data.download import Source, download
from forceuq.logs import logged


def main(job) -> None:
    with logged(job.log[0]):
        download(Source(**job.params.source), Path(job.output[0]), lock=Path(job.params.lock))


if __name__ == "__main__":
    main(snakemake)
