"""Merge the metrics and curves of all fits into one table each."""

from pathlib import Path

from forceuq.metric_tables import merge_curves, merge_metrics
from forceuq.provenance.jobs import recorded


def main(job) -> None:
    with recorded(job):
        for merge, kind in ((merge_metrics, "metrics"), (merge_curves, "curves")):
            files = [file for folder in job.input[kind] for file in sorted(Path(folder).glob("*.parquet"))]
            merge(files, Path(job.output[kind]))


if __name__ == "__main__":
    main(snakemake)
