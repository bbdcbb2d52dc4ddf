"""Write what the fits cost."""

from pathlib import Path

from forceuq.costs import cost_table
from forceuq.provenance.jobs import recorded


def main(job) -> None:
    fits = []
    for name, folder in zip(job.params.fits, job.input.fits, strict=True):
        method, dataset, *_ = name.split("/")
        fits.append((dataset, method, Path(folder)))
    with recorded(job):
        cost_table(fits, Path(job.output.csv), job.params.methods, job.params.datasets)


if __name__ == "__main__":
    main(snakemake)
