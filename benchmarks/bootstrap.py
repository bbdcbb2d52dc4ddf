"""The paired bootstrap's draws, beside drawing and ranking all atoms again for each.

    python benchmarks/bootstrap.py [draws] [atoms ...]

Metrics of draws of a split's structures under two calibrations whose orders differ. The peer repeats the atoms of the
structures that are drawn and takes SciPy's rank correlation of each calibration, and nothing else; it has a few draws
only. Each measurement is in a process of its own with one thread; seconds are processor time. The difference is the
largest between rank correlations of the same draws, over their standard deviation.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from forceuq import bootstrap
from forceuq.predictions import PredictionBlock, read_predictions, write_predictions

ATOMS, DRAWS, PEER_DRAWS = (125_000, 250_000, 500_000, 1_000_000, 2_000_000), 200, 10
CALIBRATIONS = ((1.0, 1.0), (0.5, 4.0))
PER_STRUCTURE, BLOCK, SEED = 20, 65_520, 0


def blocks(atoms: int) -> Iterator[PredictionBlock]:
    """Yield atoms whose errors are partly their structure's and partly their own, as is their spread."""
    for start in range(0, atoms, BLOCK):
        n = min(BLOCK, atoms - start)
        random = np.random.default_rng([SEED, start])
        structure = np.arange(start, start + n) // PER_STRUCTURE
        hard = random.lognormal(size=structure[-1] - structure[0] + 1)[structure - structure[0]]
        spread = hard * random.gamma(2.0, 0.05, size=n)
        floor = random.gamma(2.0, 0.05, size=n) + 0.01
        diagonal = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
        yield PredictionBlock(
            structure=structure,
            atom=(np.arange(n) % PER_STRUCTURE).astype(np.int32),
            number=np.ones(n, dtype=np.int16),
            part=np.zeros(n, dtype=np.int16),
            target=np.sqrt(floor + spread)[:, None] * random.normal(size=(n, 3)),
            mean=np.zeros((n, 3)),
            floor=floor[:, None] * diagonal,
            spread=spread[:, None] * diagonal,
        )


def write(file: str, atoms: str) -> dict[str, float]:
    labels = {"dataset": "d", "task": "t", "method": "m", "seed": 0, "split": "id"}
    write_predictions(Path(file), blocks(int(atoms)), labels)
    return {}


def ours(file: str, draws: str) -> dict[str, object]:
    began = time.process_time()
    found = bootstrap.bootstrap(Path(file), CALIBRATIONS, int(draws), [SEED], Path(file).parent)
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    correlations = [metrics["spearman"][1:].tolist() for metrics in found.metrics]
    return {"seconds": seconds, "bytes": peak, "correlations": correlations}


def peer(file: str, draws: str) -> dict[str, object]:
    from scipy.stats import spearmanr

    read = list(read_predictions(Path(file)))
    error = np.concatenate([np.sqrt(np.square(block.target - block.mean).sum(axis=1)) for block in read])
    floor, spread = (
        np.concatenate([getattr(b, name)[:, :3].sum(axis=1) for b in read]) for name in ("floor", "spread")
    )
    structure = np.concatenate([block.structure for block in read])
    found: list[list[float]] = [[] for _ in CALIBRATIONS]
    weights = bootstrap._weights(int(structure[-1]) + 1, int(draws), [SEED], int(draws))
    next(weights)
    began = time.process_time()
    for drawn in next(weights):
        atoms = np.repeat(np.arange(len(structure)), drawn[structure])
        for correlations, (a, b) in zip(found, CALIBRATIONS, strict=True):
            correlations.append(float(spearmanr(error[atoms], (a * floor + b * spread)[atoms]).statistic))
    return {"seconds": time.process_time() - began, "correlations": found}


def measured(what: str, *arguments: object) -> dict[str, object]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, __file__, what, *map(str, arguments)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(draws: int, sizes: list[int]) -> None:
    print(f"{draws} draws of structures of {PER_STRUCTURE} atoms, {len(CALIBRATIONS)} calibrations, one thread each")
    rows = []
    for atoms in sizes:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "id.parquet"
            measured("write", file, atoms)
            alone, all_draws = measured("ours", file, 1), measured("ours", file, draws)
            again = measured("peer", file, PEER_DRAWS)
        a_draw = (all_draws["seconds"] - alone["seconds"]) / (draws - 1)
        rows.append((all_draws["seconds"], all_draws["bytes"]))
        own, exact = np.array(all_draws["correlations"]), np.array(again["correlations"])
        off = (np.abs(own[:, :PEER_DRAWS] - exact).max(axis=1) / own.std(axis=1)).max()
        print(
            f"{atoms:9} atoms {all_draws['seconds']:7.1f} s, of which {alone['seconds']:.1f} before the draws;"
            f" {atoms / a_draw:.2g} atoms times draws/s, {again['seconds'] / PEER_DRAWS / a_draw:.1f} times the peer's;"
            f" {all_draws['bytes'] / 1e6:.0f} MB at most; correlations differ by {off:.4f}",
            flush=True,
        )
    if len(sizes) > 1:
        time_power, memory_power = np.polyfit(np.log(sizes), np.log(rows), 1)[0]
        print(f"time grows as atoms^{time_power:.2f}, memory as atoms^{memory_power:.2f}")


if __name__ == "__main__":
    steps = {"write": write, "ours": ours, "peer": peer}
    if sys.argv[1:] and sys.argv[1] in steps:
        print(json.dumps(steps[sys.argv[1]](*sys.argv[2:])))
    else:
        given = [int(value) for value in sys.argv[1:]]
        main(given[0] if given else DRAWS, given[1:] or list(ATOMS))
