"""How the tests make jobs fail, or wait: copied into the project under test as ``forceuq/faults.py``.

What to do stands in ``faults/<stage>.json`` beside the Snakefile; without that file nothing is done, so that a local
run is the reference of what a run with faults must give. What was done is appended to ``faults/journal``, a line an
event.
"""

import json
import os
import time
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "faults"


def note(stage: str, event: str) -> None:
    """Append an event to the journal: time, Slurm's job and node, stage, event."""
    FOLDER.mkdir(exist_ok=True)
    where = os.environ.get("SLURM_JOB_ID", "-"), os.environ.get("SLURMD_NODENAME", "-")
    with (FOLDER / "journal").open("a") as handle:
        handle.write(f"{time.time():.3f} {where[0]} {where[1]} {stage} {event}\n")


def plan(stage: str) -> dict[str, object]:
    """Return what a stage is to do in this job."""
    try:
        return json.loads((FOLDER / f"{stage}.json").read_text())
    except FileNotFoundError:
        return {}


def begin(stage: str) -> None:
    """Note that a stage has begun; wait to be let go on; fail on a bad node, or use much memory."""
    note(stage, f"begin cuda={os.environ.get('CUDA_VISIBLE_DEVICES', 'none')}")
    while (FOLDER / f"{stage}.hold").exists():
        time.sleep(0.2)
    wanted = plan(stage)
    if wanted.get("bad_node") == os.environ.get("SLURMD_NODENAME", "-"):
        raise OSError("faults: this node fails every job")
    if "memory_mb" in wanted:
        held = bytearray(b"\x01") * (int(str(wanted["memory_mb"])) << 20)
        note(stage, f"holds {len(held) >> 20} MB")
        time.sleep(5)  # Slurm looks at the memory of jobs every second


def first_start_of(stage: str) -> bool:
    """Return whether the journal has no earlier job of this stage."""
    own = os.environ.get("SLURM_JOB_ID", "-")
    lines = (line.split() for line in (FOLDER / "journal").read_text().splitlines())
    return all(job == own for _, job, _, name, *_ in lines if name == stage)
