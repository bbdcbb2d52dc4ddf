"""Caching on a GPU; skipped where there is none."""

import numpy as np
import pytest
import torch

from forceuq.backbones import orb
from forceuq.data.splits import write_splits
from forceuq.data.structures import StructureWriter, structure
from forceuq.features.cache import FeatureReader
from forceuq.features.extract import extract_features

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
OPTIONS = {"architecture": "forceuq-small"}


@pytest.fixture
def case(tmp_path):
    from ase.build import bulk

    rng = np.random.default_rng(0)
    with StructureWriter(tmp_path / "structures.parquet") as writer:
        for index in range(600):
            atoms = bulk("NaCl", "rocksalt", 5.64) * (1 + index % 3, 2, 1 + index % 4)
            positions = atoms.positions + 0.05 * rng.normal(size=atoms.positions.shape)
            writer.add(
                structure(
                    f"s{index}", "g", numbers=atoms.numbers, positions=positions,
                    forces=rng.normal(size=positions.shape), cell=np.array(atoms.cell),
                )
            )  # fmt: skip
    names = [f"s{index}" for index in range(600)]
    write_splits(tmp_path / "splits.parquet", names, np.arange(600), ["all"] * 600, expected=("all",))
    orb.write_random(orb.Options(**OPTIONS), tmp_path / "weights.safetensors")
    return tmp_path


def cached(folder, name, **changes):
    settings = {"device": "cuda", "workers": 0, "max_atoms_per_batch": 512} | changes
    done = extract_features(
        folder / "structures.parquet", folder / "splits.parquet", "all", folder / "weights.safetensors", "orb",
        OPTIONS, folder / name, **settings,
    )  # fmt: skip
    blocks = list(FeatureReader([folder / name]).blocks())
    return done, *(np.concatenate([getattr(block, field) for block in blocks]) for field in ("features", "zbl"))


def test_a_gpu_caches_what_the_processor_does(case):
    _, features, zbl = cached(case, "cpu", device="cpu")
    for name, workers in (("alone", 0), ("helped", 2)):
        done, found, repulsion = cached(case, name, workers=workers)
        assert (done.device, done.out_of_memory) == ("cuda", 0)
        np.testing.assert_allclose(found, features, rtol=1e-3, atol=1e-3 * np.abs(features).max())
        np.testing.assert_allclose(repulsion, zbl, rtol=1e-3, atol=1e-5)


def test_a_pass_too_large_for_the_memory_is_halved(case):
    _, features, _ = cached(case, "few")
    held = torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.5e8 / held)
    try:
        done, found, _ = cached(case, "halved", max_atoms_per_batch=8192, atoms_per_row_group=16384)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert done.out_of_memory > 0
    assert done.max_atoms < 8192
    np.testing.assert_allclose(found, features, rtol=1e-3, atol=1e-3 * np.abs(features).max())
