"""Compare the methods on every split of a data set."""

from pathlib import Path

from forceuq.comparisons import Evaluated, compare
from forceuq.provenance.jobs import recorded


def main(job) -> None:
    fits = []
    for fit, predictions, calibrations in zip(
        job.params.fits, job.input.predictions, job.input.calibrations, strict=True
    ):
        method, _, task, seed = fit.split("/")
        fits.append(Evaluated(method, task, int(seed.removeprefix("seed")), Path(predictions), Path(calibrations)))
    with recorded(job):
        output = Path(job.output.comparisons)
        compare(fits, job.params.splits, output, draws=job.params.draws, processes=job.threads)


if __name__ == "__main__":
    main(snakemake)
