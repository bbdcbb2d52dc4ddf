"""How time and memory of the statistical core grow with the atoms: the evidence BLL from a cache, and all metrics.

    python benchmarks/growth.py [atoms ...]

Each size is measured in a process of its own with one thread: processor time (best of three), and the peak of resident
memory. The feature cache and MPtrj's reader print their growth themselves (`feature_cache.py`,
`mptrj_ingest.py`).
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SIZES = (125_000, 250_000, 500_000, 1_000_000)
WIDTH = 256
ROUNDS = 3


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write(directory: str) -> dict[str, float]:
    """Write a cache of as many atoms as its folder is named after; in a process of its own, for the peaks of others
    begin at what their parent has.
    """
    from bll_evidence import write_cache

    write_cache(Path(directory), int(Path(directory).name), WIDTH)
    return {}


def bll(directory: str) -> dict[str, float]:
    """Fit the evidence BLL to a cache."""
    from bll_evidence import statistics_of

    from forceuq.bll.evidence import fit_evidence

    seconds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        fit_evidence(statistics_of(Path(directory), WIDTH, 1))
        seconds.append(time.process_time() - began)
    return {"seconds": min(seconds), "bytes": peak()}


def metrics(atoms: str) -> dict[str, float]:
    """Evaluate all metrics of a split under one calibration."""
    from metrics_peers import ours

    found = [ours(int(atoms)) for _ in range(ROUNDS)]
    return {"seconds": min(row["seconds"] for row in found), "bytes": peak()}


def measured(what: str, argument: object) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, __file__, what, str(argument)]
    found: dict[str, float] = json.loads(
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )
    return found


def report(name: str, sizes: list[int], rows: list[dict[str, float]]) -> None:
    print(f"{name}, one thread")
    for atoms, row in zip(sizes, rows, strict=True):
        print(f"{atoms:9} atoms {row['seconds']:8.3f} s {atoms / row['seconds']:10.3g} atoms/s", end="")
        print(f" {row['bytes'] / 1e6:8.0f} MB at most")
    logarithms = np.log([[row["seconds"], row["bytes"]] for row in rows])
    time_power, memory_power = np.polyfit(np.log(sizes), logarithms, 1)[0]
    print(f"time grows as atoms^{time_power:.2f}, memory as atoms^{memory_power:.2f}\n", flush=True)


def main(sizes: list[int]) -> None:
    fits = []
    with tempfile.TemporaryDirectory() as name:
        for atoms in sizes:
            directory = Path(name) / str(atoms)
            measured("write", directory)
            fits.append(measured("bll", directory))
    report(f"evidence BLL from a cache of {WIDTH} features", sizes, fits)
    report("all metrics of a split", sizes, [measured("metrics", atoms) for atoms in sizes])


if __name__ == "__main__":
    steps = {"write": write, "bll": bll, "metrics": metrics}
    if sys.argv[1:] and sys.argv[1] in steps:
        print(json.dumps(steps[sys.argv[1]](sys.argv[2])))
    else:
        main([int(value) for value in sys.argv[1:]] or list(SIZES))
