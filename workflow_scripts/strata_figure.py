"""Count a data set's strata, and draw the energies above the relaxed structures."""

from pathlib import Path

from forceuq.data.strata import count_strata, write_table
from forceuq.figures.strata import strata_figure
from forceuq.provenance.jobs import recorded


def main(job) -> None:
    boundaries = job.params.boundaries
    with recorded(job):
        counts, histogram = count_strata(
            Path(job.input.structures), Path(job.input.splits), job.params.parts, boundaries
        )
        write_table(counts, Path(job.output.csv))
        strata_figure(histogram, Path(job.output.png), boundaries, job.params.title)


if __name__ == "__main__":
    main(snakemake)
