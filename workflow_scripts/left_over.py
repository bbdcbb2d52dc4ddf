"""Jobs that go on after their Snakemake was killed."""

import sys
from pathlib import Path

import psutil


def is_snakemake(process: psutil.Process) -> bool:
    """Return whether a process is a Snakemake."""
    return any(Path(part).name == "snakemake" for part in process.cmdline()[:4])


def refuse_left_over(folder: Path) -> None:
    """Stop where jobs of a run that was killed go on: they write files that would be made a second time.

    Raises:
        SystemExit: naming their processes, and what to do.
    """
    scripts = f"{folder}/.snakemake/scripts/"
    alive = []
    for process in psutil.process_iter():
        try:
            job = any(part.startswith(scripts) for part in process.cmdline())
            if job and not any(is_snakemake(above) for above in process.parents()):
                alive.append(str(process.pid))
        except psutil.Error:
            continue
    if alive:
        sys.exit(
            f"A run in {folder} was killed, and jobs of it go on (process {', '.join(alive)}); wait for them, or end"
            f" them: kill {' '.join(alive)}"
        )
