"""Take away the lock of a run that was killed; a lock whose run is alive is left."""

import os
import subprocess
import sys
from pathlib import Path

import psutil


def running(folder: Path) -> list[int]:
    """Return the process ids of Snakemake runs in a folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if process.pid == os.getpid() or not any(Path(part).name == "snakemake" for part in command[:4]):
            continue
        if "--nolock" in command:  # started by run_together.py, which has locks of its own
            continue
        try:
            if Path(process.cwd()) == folder:
                found.append(process.pid)
        except psutil.Error:  # it ended, or is another user's
            continue
    return found


def main() -> None:
    folder = Path.cwd().resolve()
    locks = folder / ".snakemake" / "locks"
    if not locks.is_dir() or not any(locks.iterdir()):
        return
    alive = running(folder)
    if alive:
        sys.exit(f"Another run is going on in {folder} (process {alive[0]}); wait for it, or stop it.")
    print("A run that was killed left its lock here; taking it away and going on.")
    subprocess.run([sys.executable, "-m", "snakemake", "--unlock", "--quiet", "all", *sys.argv[1:]], check=True)


if __name__ == "__main__":
    main()
