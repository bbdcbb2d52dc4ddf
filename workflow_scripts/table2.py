"""Write Table 2 as CSV, Markdown and LaTeX."""

from pathlib import Path

from forceuq.provenance.jobs import recorded
from forceuq.tables import table2


def main(job) -> None:
    with recorded(job):
        table2(
            Path(job.input.metrics),
            Path(job.output.csv),
            job.params.splits,
            job.params.methods,
            fitted_to=job.params.fitted_to,
            comparisons=dict(zip(job.params.compared, map(Path, job.input.comparisons), strict=True)),
            paper=job.params.paper,
        )


if __name__ == "__main__":
    main(snakemake)
