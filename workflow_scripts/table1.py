"""Write Table 1: what the methods cost."""

from pathlib import Path

from forceuq.provenance.jobs import recorded
from forceuq.table1 import FitFolders, Instance, table1
from forceuq.tables import paper_values


def main(job) -> None:
    instances = [
        Instance(
            instance["dataset"],
            instance["method"],
            tuple(
                FitFolders(
                    fits=tuple(map(Path, member["fits"])),
                    predictions=Path(member["predictions"]),
                    trained_on=tuple(map(Path, member["trained_on"])),
                    predicted=tuple(map(Path, member["predicted"])),
                )
                for member in instance["members"]
            ),
        )
        for instance in job.params.instances
    ]
    with recorded(job):
        table1(
            instances,
            Path(job.output.csv),
            job.params.methods,
            job.params.datasets,
            paper_values()["table1"] if job.params.paper else None,
        )


if __name__ == "__main__":
    main(snakemake)
