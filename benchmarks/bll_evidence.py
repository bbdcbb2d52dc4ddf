"""Seconds of a BLL's ``evidence`` fit from a cache of a million atoms, beside what the machine can do.

    python benchmarks/bll_evidence.py [atoms] [features] [rounds]

Writes a synthetic cache to a temporary folder (a KiB an atom at 256 features) and prints: the pass to the
sufficient statistics, as the share of what disk and BLAS allow, both measured in the same rounds; the fit; and the
posterior. Each is the best of some rounds, in which the measurements take turns, so that all see the same machine.
Threads: as many as OMP_NUM_THREADS says.
"""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from forceuq.bll.evidence import fit_evidence
from forceuq.bll.posterior import Posterior
from forceuq.bll.rank_update import add_product
from forceuq.bll.statistics import SufficientStatistics, accumulate, merged
from forceuq.bll.summary import threads_given
from forceuq.features.cache import FeatureMetadata, FeatureReader, FeatureWriter

ATOMS_A_STRUCTURE = 20
ROWS = 768  # as forceuq.bll.statistics multiplies them


def best_seconds(actions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    best = dict.fromkeys(actions, float("inf"))
    for _ in range(rounds):
        for name, action in actions.items():
            began = time.perf_counter()
            action()
            best[name] = min(best[name], time.perf_counter() - began)
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


def read_files(directory: Path) -> None:
    for path in sorted(directory.glob("*.parquet")):
        with path.open("rb", buffering=0) as handle:
            while handle.read(2**24):
                pass


def forget_files(directory: Path) -> None:
    """Have the system drop the files from its cache, so that they come from the disk again."""
    for path in directory.glob("*.parquet"):
        handle = os.open(path, os.O_RDONLY)
        os.fdatasync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def statistics_of(directory: Path, width: int, threads: int) -> SufficientStatistics:
    """As forceuq.bll.summary does it, without a head: the cached features are the last layer's."""
    reader = FeatureReader([directory])

    def of(groups: np.ndarray) -> SufficientStatistics:
        blocks = reader.blocks(order=groups.tolist())
        return accumulate(((block.features, block.force - block.zbl) for block in blocks), width)

    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        return merged(pool.map(of, np.array_split(np.arange(reader.n_row_groups), 4 * threads)))


def products_of(atoms: int, width: int, threads: int) -> None:
    """Multiply as many rows, in float64 and in the processor's cache."""
    rows = np.random.default_rng(0).normal(size=(ROWS, width))

    def of(_: int) -> None:
        total = np.zeros((width, width))
        for _ in range(atoms // ROWS // threads):
            add_product(total, rows)

    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        list(pool.map(of, range(threads)))


def main() -> None:
    given = [int(value) for value in sys.argv[1:]]
    atoms, width, rounds = [*given, *[1_000_000, 256, 3][len(given) :]]
    threads = threads_given()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        write_cache(directory, atoms, width)
        size = sum(path.stat().st_size for path in directory.iterdir())
        square = np.random.default_rng(0).normal(size=(2048, 2048))
        other = square.T.copy()
        rows = np.random.default_rng(0).normal(size=(8192, width))

        def from_disk(action: Callable[[], object]) -> Callable[[], object]:
            return lambda: (forget_files(directory), action())

        def collect() -> SufficientStatistics:
            return statistics_of(directory, width, threads)

        took = best_seconds(
            {
                "forget": lambda: forget_files(directory),
                "disk": from_disk(lambda: read_files(directory)),
                "pass from disk": from_disk(collect),
                "memory": lambda: read_files(directory),
                "pass": collect,
                "reading": lambda: list(map(len, FeatureReader([directory]).blocks())),
                "products": lambda: products_of(atoms, width, threads),
                "square": lambda: square @ other,
                "rows": lambda: rows.T @ rows,
            },
            rounds,
        )
        statistics = collect()
        found = fit_evidence(statistics)
        ends = best_seconds(
            {
                "fit": lambda: fit_evidence(statistics),
                "posterior": lambda: Posterior.from_statistics(statistics, found.precision, found.noise),
            },
            rounds,
        )
        # A symmetric product does half of a general one's multiplications.
        peak = 2 * 2048**3 / took["square"]
        multiplying = atoms * width * (width + 1) / peak
        disk = took["disk"] - took["forget"]
        passing = took["pass from disk"] - took["forget"]
        print(f"{atoms} atoms, {width} features, {size / 1e9:.2f} GB, {threads} threads, best of {rounds}")
        print(f"measured: disk {size / disk / 1e9:.2f} GB/s (from memory {size / took['memory'] / 1e9:.2f})")
        print(
            f"          dgemm {peak / 1e9:.0f} GFLOP/s, of rows as these"
            f" {8192 * width * (width + 1) / took['rows'] / 1e9:.0f}"
        )
        print(f"reading alone, from memory   {took['reading']:6.2f} s")
        print(f"products alone               {took['products']:6.2f} s")
        for name, seconds, bound in (
            ("pass, from disk", passing, max(disk, multiplying)),
            ("pass, from memory", took["pass"], max(took["memory"], multiplying)),
        ):
            print(
                f"{name:27} {seconds:7.2f} s: {bound / seconds:.2f} of the slower of reading and dgemm ({bound:.2f} s)"
            )
        print(f"evidence fit                 {ends['fit']:6.2f} s ({found.evaluations} evaluations)")
        print(f"posterior                    {ends['posterior']:6.2f} s")
        print(f"peak memory                  {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:6.2f} GiB")


if __name__ == "__main__":
    main()
