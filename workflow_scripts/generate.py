"""Make a raw file in a published format."""

from pathlib import Path

from forceuq.data.generators import load_generator
from forceuq.provenance.jobs import recorded


def main(job) -> None:
    generator = load_generator(job.params.generator["kind"])
    with recorded(job):
        generator.generate(Path(job.output.raw), generator.Options(**job.params.generator["options"]))


if __name__ == "__main__":
    main(snakemake)
