"""Making the feature cache, beside the bare work: graph construction and the backbone's pass over the same batches.

    python benchmarks/feature_cache.py [structures ...]

Molecules and alloys as the demo makes them (without labels), `forceuq-small` on the CPU, all in one process and one
thread: processor time is compared, without the loading of the model, so that what else runs on the machine matters
less. Best of three rounds. With
several numbers of structures, also the exponents with which time and memory grow.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from forceuq.backbones import orb
from forceuq.data.splits import read_part, write_splits
from forceuq.data.structures import StructureWriter, read_structures, structure
from forceuq.features.extract import extract_features
from forceuq.features.shards import atom_counts, passes, row_group_atoms

WEIGHTS = Path(orb.__file__).parent / "weights/forceuq-small.safetensors"
OPTIONS = {"architecture": "forceuq-small"}
MAX_ATOMS = 2048
ROUNDS = 3


def write_structures(folder: Path, number: int) -> None:
    from ase.build import bulk, molecule

    kinds = [molecule("CH3CH2OH"), bulk("Cu", cubic=True) * (2, 2, 2), molecule("C6H6"), bulk("Ni", cubic=True)]
    names = [f"s{index}" for index in range(number)]
    with StructureWriter(folder / "structures.parquet") as writer:
        for index, name in enumerate(names):
            random = np.random.default_rng(index)
            atoms = kinds[index % len(kinds)]
            shape = atoms.positions.shape
            positions = atoms.positions + 0.05 * random.normal(size=shape)
            cell = np.array(atoms.cell) if atoms.pbc.any() else None
            writer.add(
                structure(
                    name, "g", numbers=atoms.numbers, positions=positions, forces=random.normal(size=shape), cell=cell
                )
            )
    write_splits(folder / "splits.parquet", names, np.arange(number), ["all"] * number, expected=("all",))


def processor_seconds(action: Callable[..., object], *arguments: object) -> float:
    began = time.process_time()
    action(*arguments)
    return time.process_time() - began


def bare(folder: Path, backbone: orb.OrbBackbone) -> None:
    """Go through the same batches: their graphs, features and ZBL forces, kept nowhere."""
    settings = orb.Options(**OPTIONS)
    rows = read_part(folder / "splits.parquet", "all")
    atoms = atom_counts(folder / "structures.parquet", rows)
    stream = read_structures(folder / "structures.parquet", rows)
    with torch.inference_mode():
        for first, last in passes(atoms, row_group_atoms(int(atoms.sum())), MAX_ATOMS):
            graph = orb.graphs([next(stream)[1] for _ in range(last - first)], settings)
            backbone.node_features(graph)
            backbone.zbl(graph)


def main() -> None:
    torch.set_num_threads(1)
    backbone = orb.load(WEIGHTS, orb.Options(**OPTIONS))
    sizes = [int(value) for value in sys.argv[1:]] or [1000]
    found = []
    for number in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_structures(folder, number)
            bare(folder, backbone)
            work, cache = [], []
            for index in range(ROUNDS):
                work.append(processor_seconds(bare, folder, backbone))
                loading = processor_seconds(orb.load, WEIGHTS, orb.Options(**OPTIONS))
                began = time.process_time()
                done = extract_features(
                    folder / "structures.parquet",
                    folder / "splits.parquet",
                    "all",
                    WEIGHTS,
                    "orb",
                    OPTIONS,
                    folder / f"cache{index}",
                    max_atoms_per_batch=MAX_ATOMS,
                    workers=0,
                    device="cpu",
                )
                cache.append(time.process_time() - began - loading)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            found.append((done.atoms, min(cache), peak))
            print(
                f"{number} structures, {done.atoms} atoms: bare {min(work):.2f} s, cache {min(cache):.2f} s of"
                f" processor time: {min(work) / min(cache):.2f}; the bottleneck: {done.bottleneck}; peak {peak:.2f} GiB"
            )
    if len(found) > 1:
        atoms, seconds, peaks = np.log(np.array(found)).T
        growth = [np.polyfit(atoms, values, 1)[0] for values in (seconds, peaks)]
        print(f"time grows as atoms^{growth[0]:.2f}, memory as atoms^{growth[1]:.2f}")


if __name__ == "__main__":
    main()
