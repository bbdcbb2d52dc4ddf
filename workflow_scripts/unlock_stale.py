"""Take away the lock of a run that was killed; a lock whose run is alive, or has a job that is, is left."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
from left_over import is_snakemake, refuse_left_over
from run_name import named


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


def main() -> None:
    folder = Path.cwd().resolve()
    locks = folder / ".snakemake" / "locks"
    if not locks.is_dir() or not any(locks.iterdir()):
        return
    if alive := running(folder):
        sys.exit(f"Another run is going on in {folder} (process {alive[0]}); wait for it, or stop it.")
    refuse_left_over(folder)
    named(sys.argv[1:])  # which says it if a configuration cannot be read
    print("A run that was killed left its lock here; taking it away and going on.")
    done = subprocess.run([sys.executable, "-m", "snakemake", "--unlock", "--quiet", "all", *sys.argv[1:]], check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
