"""Train forceuq-small."""

from pathlib import Path

from forceuq.backbones.small.options import Options
from forceuq.backbones.small.training import train_small_orb
from forceuq.checkpoints import checkpoints_of
from forceuq.provenance.jobs import recorded


def main(job) -> None:
    with checkpoints_of(Path(job.params.checkpoints), job.params.code) as checkpoints, recorded(job):
        train_small_orb(
            Path(job.input.frames),
            Path(job.output.weights),
            Path(job.output.record),
            Options(**job.params.options),
            checkpoints,
        )


if __name__ == "__main__":
    main(snakemake)
