"""Seconds of a BLL's ``evidence`` fit from a cache of a million atoms, beside what the machine can do.

    python benchmarks/bll_evidence.py [atoms] [features]

Writes a synthetic cache to a temporary folder (a KiB an atom at 256 features) and prints: the streaming pass to
the sufficient statistics, against the time that its multiplications and its reading would take alone, at
speeds measured in the same run; the fit; and the posterior. Each is the best of three.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from forceuq.bll.evidence import fit_evidence
from forceuq.bll.posterior import Posterior
from forceuq.bll.statistics import accumulate
from forceuq.features.cache import FeatureMetadata, FeatureReader, FeatureWriter

ATOMS_A_STRUCTURE = 20


def seconds(action: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - began)
    return best


def write_cache(directory: Path, atoms: int, width: int) -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(width, width)) / np.arange(1, width + 1)[:, None]
    weights = rng.normal(size=(width, 3))
    block = 1000 * ATOMS_A_STRUCTURE
    with FeatureWriter(directory, FeatureMetadata(width, "synthetic", "1", "none")) as writer:
        for start in range(0, atoms, block):
            n = min(block, atoms - start)
            features = (rng.standard_normal((n, width), dtype=np.float32) @ mixing).astype(np.float32)
            force = features @ weights + rng.normal(size=(n, 3))
            index = np.arange(start, start + n)
            writer.add(
                index // ATOMS_A_STRUCTURE, index % ATOMS_A_STRUCTURE, np.ones(n), force, np.zeros((n, 3)), features
            )


def main() -> None:
    atoms, width = (int(value) for value in [*sys.argv[1:], *["1000000", "256"][len(sys.argv) - 1 :]])
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        write_cache(directory, atoms, width)
        size = sum(path.stat().st_size for path in directory.iterdir())

        def read_files() -> None:
            for path in directory.glob("*.parquet"):
                with path.open("rb", buffering=0) as handle:
                    while handle.read(2**24):
                        pass

        def stream() -> None:
            for _ in FeatureReader([directory]).blocks():
                pass

        def collect() -> object:
            blocks = FeatureReader([directory]).blocks()
            return accumulate(((block.features, block.force - block.zbl) for block in blocks), width)

        square = np.random.default_rng(0).normal(size=(2048, 2048))
        peak = 2 * 2048**3 / seconds(lambda: square @ square.T.copy())
        bandwidth = size / seconds(read_files)
        reading = seconds(stream)
        passing = seconds(collect)
        began = time.process_time()
        collect()
        processor = time.process_time() - began
        statistics = accumulate(
            ((block.features, block.force - block.zbl) for block in FeatureReader([directory]).blocks()), width
        )
        fitting = seconds(lambda: fit_evidence(statistics))
        found = fit_evidence(statistics)
        solving = seconds(lambda: Posterior.from_statistics(statistics, found.precision, found.noise))
        # A symmetric product does half of a general one's multiplications.
        multiplying = atoms * width * (width + 1) / peak
        bare = size / bandwidth
        print(f"{atoms} atoms, {width} features, {size / 1e9:.2f} GB")
        print(f"measured: dgemm {peak / 1e9:.0f} GFLOP/s, file read {bandwidth / 1e9:.2f} GB/s (cached)")
        print(f"reading alone       {reading:6.2f} s ({reading / bare:.1f} x the bare read)")
        print(
            f"streaming pass      {passing:6.2f} s ({passing / (multiplying + bare):.1f} x the bare read"
            f" {bare:.2f} s and the products at dgemm's speed {multiplying:.2f} s)"
        )
        print(f"  processor time    {processor:6.2f} s (what counts on a shared machine; with OMP_NUM_THREADS=1)")
        print(f"evidence fit        {fitting:6.2f} s ({found.evaluations} evaluations)")
        print(f"posterior           {solving:6.2f} s")
        print(f"pass + fit          {passing + fitting + solving:6.2f} s")
        print(f"peak memory         {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:6.2f} GiB")


if __name__ == "__main__":
    main()
