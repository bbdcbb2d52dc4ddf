"""Take away the lock of a run that was killed; a lock whose run is alive, or has a job that is, is left."""

import os
import subprocess
import sys
from pathlib import Path

import psutil


def is_snakemake(process: psutil.Process) -> bool:
    return any(Path(part).name == "snakemake" for part in process.cmdline()[:4])


def running(folder: Path) -> list[int]:
    """Return the process ids of Snakemake runs in a folder, save those of run_together.py, which has its own locks."""
    found = []
    for process in psutil.process_iter():
        try:
            plain = is_snakemake(process) and "--nolock" not in process.cmdline()
            if plain and process.pid != os.getpid() and Path(process.cwd()) == folder:
                found.append(process.pid)
        except psutil.Error:  # it ended, or is another user's
            continue
    return found


def refuse_left_over(folder: Path) -> None:
    """Stop where jobs of a run that was killed go on: they write files that would be made a second time."""
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


def main() -> None:
    folder = Path.cwd().resolve()
    locks = folder / ".snakemake" / "locks"
    if not locks.is_dir() or not any(locks.iterdir()):
        return
    if alive := running(folder):
        sys.exit(f"Another run is going on in {folder} (process {alive[0]}); wait for it, or stop it.")
    refuse_left_over(folder)
    print("A run that was killed left its lock here; taking it away and going on.")
    subprocess.run([sys.executable, "-m", "snakemake", "--unlock", "--quiet", "all", *sys.argv[1:]], check=True)


if __name__ == "__main__":
    main()
