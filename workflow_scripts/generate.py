"""Make a raw file in a published format."""

from pathlib import Path

from forceuq.data.generators import load_generator
from forceuq.logs import logged


def main(job) -> None:
    generator = load_generator(job.params.generator["kind"])
    with logged(job.log[0]):
        generator.generate(Path(job.output.raw), generator.Options(**job.params.generator["options"]))


if __name__ == "__main__":
    main(snakemake)
