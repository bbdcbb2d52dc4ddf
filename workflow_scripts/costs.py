"""Write what the fits cost."""

from pathlib import Path

from forceuq.costs import cost_table
from forceuq.logs import logged


def main(job) -> None:
    fits = [
        (dataset, method, Path(folder))
        for (dataset, method), folder in zip(job.params.fits, job.input.fits, strict=True)
    ]
    with logged(job.log[0]):
        cost_table(fits, Path(job.output.csv), job.params.methods, job.params.datasets)


if __name__ == "__main__":
    main(snakemake)
