"""Run the workflow: several runs at once may share a results folder; what they share is made by one of them.

Snakemake's own lock is taken away whole by the run that ends first, and refuses runs that need the same caches. So
each run holds a lock of its own name here, and makes the caches under one that all runs share. The system gives
both back when a process ends, however it ends.
"""

import subprocess
import sys
from pathlib import Path

from filelock import FileLock, Timeout
from snakemake.cli import parse_args, parse_config
from snakemake.common.configfile import load_configfile
from snakemake.settings.types import ConfigSettings


def named(arguments: list[str]) -> tuple[Path, str]:
    """Return the results folder and the run's name, as Snakemake and the Snakefile will read them."""
    _, args = parse_args(arguments)
    config = ConfigSettings(config=parse_config(args.config), configfiles=args.configfile or []).overwrite_config
    if "run" not in config:
        config = {**load_configfile("config/demo.yaml"), **config}
    return Path(config.get("results", "results")), str(config["run"])


def snakemake(*arguments: str) -> int:
    """Run Snakemake without its lock and return its exit code."""
    return subprocess.run([sys.executable, "-m", "snakemake", "--nolock", *arguments], check=False).returncode


def main(arguments: list[str]) -> int:
    """Make the caches, then the rest; return Snakemake's exit code."""
    results, run = named(arguments)
    locks = results / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    shared = FileLock(locks / "cache.lock")
    try:
        with FileLock(locks / f"run-{run}.lock", timeout=0):
            try:
                shared.acquire(timeout=0)
            except Timeout:
                print("Another run is making caches; waiting for them.", flush=True)
                shared.acquire()
            try:
                failed = snakemake("caches", *arguments)
            finally:
                shared.release()
            return failed or snakemake(*arguments)
    except Timeout:
        print(f"The run '{run}' is going on already; wait for it, or stop it.", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
