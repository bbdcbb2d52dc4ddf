"""Write the digest of every record that the run's results follow from."""

from pathlib import Path

from forceuq.provenance.jobs import recorded
from forceuq.provenance.ledger import write_ledger


def main(job) -> None:
    with recorded(job):
        write_ledger(
            Path(job.log[0]),
            job.rule,
            map(Path, job.input.results),
            job.params.configuration,
            Path(job.output.ledger),
        )


if __name__ == "__main__":
    main(snakemake)
