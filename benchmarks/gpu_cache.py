"""Making the feature cache with the full Orb on a GPU, beside the bare forward pass over prepared batches.

    python benchmarks/gpu_cache.py [structures] [atoms a batch] [processes that build graphs]

Rattled crystals of 2 to 128 atoms, 28 on average (MPtrj: 31), without labels; random weights of the published
architecture, which take as long as its own. Bare is the node features and the ZBL forces of batches whose graphs lie
ready in the processor's memory, with nothing kept. Row groups are those of a large
part. How busy the GPU was is sampled beside the run. Both in one process,
in turns, best of three; caching once without the other processes as well.
"""

import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forceuq.backbones import orb
from forceuq.data.splits import read_part, write_splits
from forceuq.data.structures import StructureWriter, read_structures, structure
from forceuq.features.extract import extract_features
from forceuq.features.forward import Extraction
from forceuq.features.layout import ROW_GROUP_ATOMS
from forceuq.features.shards import atom_counts, passes
from forceuq.features.transfer import to_device

MPTRJ_ATOMS = 49_295_660
OPTIONS = orb.Options()
ROUNDS = 3


def write_structures(folder: Path, number: int) -> int:
    """Write crystals and one part with all of them; return their atoms."""
    from ase.build import bulk

    salt, metal = bulk("NaCl", "rocksalt", 5.64), bulk("Cu")
    kinds = [salt * (3, 3, 2), metal * (2, 2, 1), salt * (2, 2, 1), metal * (4, 4, 2), salt * (4, 4, 4), salt,
             metal * (3, 3, 3), salt * (2, 2, 2), metal * (2, 2, 2), salt * (3, 3, 1)]  # fmt: skip
    names, atoms = [f"s{index}" for index in range(number)], 0
    with StructureWriter(folder / "structures.parquet") as writer:
        for index, name in enumerate(names):
            random = np.random.default_rng(index)
            crystal = kinds[index % len(kinds)]
            shape = crystal.positions.shape
            positions = crystal.positions + 0.05 * random.normal(size=shape)
            cell = np.array(crystal.cell)
            writer.add(
                structure(
                    name, "g", numbers=crystal.numbers, positions=positions, forces=random.normal(size=shape), cell=cell
                )
            )
            atoms += len(crystal)
    write_splits(folder / "splits.parquet", names, np.arange(number), ["all"] * number, expected=("all",))
    return atoms


def prepared(folder: Path, max_atoms: int) -> tuple[list[Any], int]:
    """Return graphs of batches as the cache makes them, of one row group, and their atoms."""
    rows = read_part(folder / "splits.parquet", "all")
    atoms = atom_counts(folder / "structures.parquet", rows)
    stream = read_structures(folder / "structures.parquet", rows)
    graphs, total = [], 0
    for first, last in passes(atoms, ROW_GROUP_ATOMS, max_atoms)[:8]:
        graphs.append(orb.graphs([next(stream)[1] for _ in range(last - first)], OPTIONS))
        total += int(atoms[first:last].sum())
    return graphs, total


def bare(backbone: orb.OrbBackbone, graphs: list[Any], times: int) -> None:
    with torch.inference_mode():
        for graph in graphs * times:
            moved = to_device(graph, "cuda")
            backbone.node_features(moved)
            backbone.zbl(moved)
        torch.cuda.synchronize()


class Busy:
    """Samples how busy the GPU is, as the driver says."""

    def __enter__(self) -> "Busy":
        self._samples: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._over.wait(0.05):
            self._samples.append(torch.cuda.utilization())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def percent(self) -> float:
        """Mean of the samples between the first and the last at which it was busy."""
        # Processes start before the first batch comes: what is idle at the beginning is not the pass.
        busy = np.flatnonzero(self._samples)
        return float(np.mean(self._samples[busy[0] : busy[-1] + 1])) if len(busy) else 0.0


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def cached(folder: Path, weights: Path, max_atoms: int, workers: int, name: str) -> tuple[Extraction, float]:
    with Busy() as busy:
        done = extract_features(
            folder / "structures.parquet", folder / "splits.parquet", "all", weights, "orb", OPTIONS.model_dump(),
            folder / name, max_atoms_per_batch=max_atoms, atoms_per_row_group=ROW_GROUP_ATOMS, workers=workers,
            device="cuda",
        )  # fmt: skip
    return done, busy.percent


def main() -> None:
    given = [int(value) for value in sys.argv[1:]]
    number, max_atoms, workers = [*given, *[10_000, 8192, 8][len(given) :]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        atoms = write_structures(folder, number)
        weights = folder / "weights.safetensors"
        orb.write_random(OPTIONS, weights)
        backbone = orb.load(weights, OPTIONS, "cuda")
        graphs, few = prepared(folder, max_atoms)
        times = max(1, atoms // few)
        bare(backbone, graphs, 1)
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {backbone.version}")
        print(f"{number} structures, {atoms} atoms, batches of {max_atoms}, {workers} processes that build graphs")
        forward, made = [], []
        for index in range(ROUNDS):
            forward.append(times * few / seconds(lambda: bare(backbone, graphs, times)))
            done, busy = cached(folder, weights, max_atoms, workers, f"cache{index}")
            made.append((done.atoms / done.seconds, busy, done))
            print(
                f"  bare {forward[-1]:10.0f} atoms/s; cache {made[-1][0]:10.0f} atoms/s, GPU busy {busy:3.0f} %,"
                f" waiting for graphs {done.graphs:.1f} s, model {done.model:.1f}, writing {done.writing:.1f}"
            )
        rate, busy, done = max(made, key=lambda each: each[0])
        print(f"cache / bare {rate / max(forward):.2f}; the bottleneck: {done.bottleneck}; GPU busy {busy:.0f} %")
        print(f"MPtrj's {MPTRJ_ATOMS} atoms: {MPTRJ_ATOMS / rate / 3600:.3f} GPU-hours")
        alone, _ = cached(folder, weights, max_atoms, 0, "alone")
        print(f"without processes beside it: {alone.atoms / alone.seconds:.0f} atoms/s; {alone.bottleneck}")
        print(f"peak GPU memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
