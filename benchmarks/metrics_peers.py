"""Predictive covariances, and a split's metrics beside uncertainty-toolbox on the same numbers; one run.

    pip install --no-deps --target FOLDER --requirement benchmarks/requirements.txt
    PYTHONPATH=FOLDER:. python benchmarks/metrics_peers.py [atoms]

uncertainty-toolbox knows scalar Gaussians only: the covariances are diagonal, and what both define is compared, over
the force components. Each side runs in a process of its own, with one thread; seconds are processor time, so that a
loaded machine tells the same, and memory is what its peak rises by.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

COMPARED = ("mae", "rmse", "sharpness", "nll", "ece")
BLOCK = 65_536
WIDTH = 256
ROUNDS = 5
Arrays = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def numbers(start: int, n: int) -> Arrays:
    """Return target, mean and variance (n, 3) of some atoms; the variance is 20 % too small."""
    random = np.random.default_rng([7, start])
    mean = random.normal(size=(n, 3))
    variance = random.gamma(2.0, 0.05, size=(n, 3)) + 0.01
    return mean + np.sqrt(1.2 * variance) * random.normal(size=(n, 3)), mean, variance


def stretches(atoms: int) -> Iterator[Arrays]:
    for start in range(0, atoms, BLOCK):
        yield numbers(start, min(BLOCK, atoms - start))


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ours(atoms: int) -> dict[str, float]:
    from forceuq.metrics import evaluate
    from forceuq.predictions import PredictionBlock

    spent = [0.0]

    def blocks() -> Iterator[PredictionBlock]:
        for target, mean, variance in stretches(atoms):
            n = len(mean)
            yield PredictionBlock(
                structure=np.arange(n, dtype=np.int64),
                atom=np.zeros(n, dtype=np.int32),
                number=np.ones(n, dtype=np.int16),
                part=np.zeros(n, dtype=np.int16),
                target=target,
                mean=mean,
                floor=np.concatenate([variance, np.zeros((n, 3))], axis=1),
                spread=np.zeros((n, 6)),
            )

    def timed() -> Iterator[PredictionBlock]:
        source = blocks()
        while True:
            began = time.process_time()
            block = next(source, None)
            spent[0] += time.process_time() - began
            if block is None:
                return
            yield block

    before, began = peak(), time.process_time()
    (found,) = evaluate(timed(), [(1.0, 1.0)])
    seconds = time.process_time() - began - spent[0]
    values = {name: found.values[name][0] for name in COMPARED}
    return {**values, "seconds": seconds, "bytes": peak() - before}


def ours_calibration(atoms: int) -> dict[str, float]:
    from forceuq.metrics import LEVELS, level_counts

    counts, seconds, before = np.zeros(len(LEVELS) + 1, dtype=np.int64), 0.0, peak()
    for target, mean, variance in stretches(atoms):
        residual = target - mean
        began = time.process_time()
        counts += level_counts(residual, variance, np.zeros(len(residual), dtype=np.int64), 1)[0]
        seconds += time.process_time() - began
    coverage = np.cumsum(counts)[:-1] / (3 * atoms)
    return {"ece": float(np.abs(coverage - LEVELS).mean()), "seconds": seconds, "bytes": peak() - before}


def covariances(atoms: int) -> dict[str, float]:
    """Return the time of a BLL's predictive means and covariances, and what dgemm takes for one product as large."""
    from forceuq.bll.posterior import Posterior
    from forceuq.bll.statistics import accumulate

    random = np.random.default_rng(0)
    features = random.normal(size=(BLOCK, WIDTH))
    posterior = Posterior.from_statistics(
        accumulate([(features, random.normal(size=(BLOCK, 3)))], WIDTH), np.ones(WIDTH), np.eye(3)
    )
    found = {"seconds": np.inf, "dgemm": np.inf, "bytes": 0.0}
    for _ in range(ROUNDS):
        before, began = peak(), time.process_time()
        posterior.predict(features)
        spread = posterior.variance_factor(features)
        np.multiply.outer(spread, np.ones(6))
        found["seconds"] = min(found["seconds"], time.process_time() - began)
        found["bytes"] = max(found["bytes"], peak() - before)
        began = time.process_time()
        features @ posterior.factor
        found["dgemm"] = min(found["dgemm"], time.process_time() - began)
    return {name: value if name == "bytes" else value * atoms / BLOCK for name, value in found.items()}


def toolbox(atoms: int) -> dict[str, float]:
    import uncertainty_toolbox as uct

    target, mean, variance = (np.concatenate(parts).ravel() for parts in zip(*stretches(atoms), strict=True))
    deviation = np.sqrt(variance)
    before, began = peak(), time.process_time()
    # Levels 0, 0.01 ... 1; those of 0 and 1 are exact and only count in the mean.
    error = uct.mean_absolute_calibration_error(mean, deviation, target, num_bins=101, vectorized=True)
    seconds, memory = time.process_time() - began, peak() - before
    began = time.process_time()
    accuracy = uct.metrics.prediction_error_metrics(mean, target)
    values = {
        "ece": error * 101 / 99,
        "mae": accuracy["mae"],
        "rmse": accuracy["rmse"],
        "sharpness": uct.sharpness(deviation),
        "nll": uct.nll_gaussian(mean, deviation, target, scaled=True),
    }
    return {
        **{name: float(value) for name, value in values.items()},
        "seconds": seconds,
        "bytes": memory,
        "others": time.process_time() - began,
    }


def measured(what: str, atoms: int) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, str(atoms), what]
    found: dict[str, float] = json.loads(
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )
    return found


def report(atoms: int) -> None:
    peer, calibration, everything = (measured(what, atoms) for what in ("toolbox", "calibration", "everything"))
    predicted = measured("covariances", atoms)
    print(f"{atoms} atoms, {3 * atoms} values, one thread each")
    print(f"means and covariances of a BLL with {WIDTH} features: {atoms / predicted['seconds']:.3g} atoms/s,", end=" ")
    print(f"{predicted['seconds'] / predicted['dgemm']:.1f} times dgemm of the same shape (a solve is half of that)")
    print(f"{'':44} {'s':>7} {'values/s':>10} {'MB on top':>17}")
    rows = (
        ("uncertainty-toolbox, calibration error", peer),
        ("ours, calibration error", calibration),
        ("ours, all metrics", everything),
    )
    for name, row in rows:
        print(f"{name:44} {row['seconds']:7.2f} {3 * atoms / row['seconds']:10.2g} {row['bytes'] / 1e6:17.0f}")
    print(f"uncertainty-toolbox, MAE, RMSE, NLL, sharpness: {peer['others']:.2f} s more")
    print(f"calibration error: {peer['seconds'] / calibration['seconds']:.1f} times as fast")
    worst = max(abs(everything[name] - peer[name]) for name in COMPARED)
    print(f"largest difference in {', '.join(COMPARED)}: {worst:.1e}")
    if max(worst, abs(calibration["ece"] - peer["ece"])) > 1e-6:
        raise SystemExit("they do not agree")


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 333_334
    sides = {"toolbox": toolbox, "calibration": ours_calibration, "everything": ours, "covariances": covariances}
    if len(sys.argv) > 2:
        print(json.dumps(sides[sys.argv[2]](count)))
    else:
        report(count)
