"""Run the workflow: several runs at once may share a results folder; what they share is made by one of them.

Snakemake's own lock is taken away whole by the run that ends first, and refuses runs that need the same caches. So
each run holds a lock of its own name here, and makes the caches under one that all runs share. The system gives
both back when Snakemake ends, however it ends.
"""

import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

from left_over import refuse_left_over
from run_name import named
from under_locks import lock, snakemake


def main(arguments: list[str]) -> int:
    """Make the caches, then the rest; return Snakemake's exit code."""
    results, run = named(arguments)
    locks = results / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    own = lock(locks / f"run-{quote(run, safe='')}.lock", wait=False)
    if own is None:
        sys.exit(f"The run '{run}' is going on already; wait for it, or stop it (docs/reruns.md says how).")
    shared = lock(locks / "cache.lock", wait=False)
    if shared is None:
        print("Another run is making caches; waiting for them.", flush=True)
        shared = lock(locks / "cache.lock", wait=True)
    refuse_left_over(Path.cwd())
    held = [own, shared]
    failed = snakemake(held, "caches", *arguments)
    if not failed:
        held.remove(shared)
        shared.close()
    # Where the workflow cannot even be read, Snakemake has said so, and would say it again.
    elif snakemake(held, "--list-target-rules", *arguments, output=subprocess.DEVNULL):
        return failed
    # A cache that failed is tried again, still under the lock; what does not need it is made in any case.
    return snakemake(held, *arguments)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # while waiting for another run
        sys.exit(130)
