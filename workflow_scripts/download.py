"""Fetch one published file and hold it to its checksum."""

from pathlib import Path

from forceuq.data.download import Source, download
from forceuq.provenance.jobs import recorded


def main(job) -> None:
    with recorded(job) as recording:
        recording.facts["url"] = download(Source(**job.params.source), Path(job.output[0]), lock=Path(job.params.lock))


if __name__ == "__main__":
    main(snakemake)
