"""Label the frames that forceuq-small is trained on."""

from pathlib import Path

from forceuq.backbones.small.options import Options
from forceuq.backbones.small.training_data import generate_training_frames
from forceuq.provenance.jobs import recorded


def main(job) -> None:
    with recorded(job):
        generate_training_frames(Path(job.output.frames), Options(**job.params.options).frames, workers=job.threads)


if __name__ == "__main__":
    main(snakemake)
