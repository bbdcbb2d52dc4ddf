"""Extraction against the backbone itself; its result does not depend on the number of workers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from safetensors.torch import save_file

from forceuq.backbones import orb
from forceuq.backbones.head import ForceHead
from forceuq.data.splits import write_splits
from forceuq.data.structures import Structure, StructureWriter, structure
from forceuq.errors import ConfigurationError, DataError
from forceuq.features import extract, shards
from forceuq.features.cache import FeatureBlock, FeatureReader
from forceuq.features.extract import export_head, extract_features
from forceuq.features.graphs import batches
from forceuq.files import file_digest

OPTIONS = {"architecture": "forceuq-small"}


def made(index: int) -> Structure:
    random = np.random.default_rng(index)
    atoms = (molecule("CH3OH"), bulk("Cu", cubic=True), molecule("H2O"))[index % 3]
    positions = atoms.positions + 0.05 * random.normal(size=(len(atoms), 3))
    return structure(
        f"s{index:03d}",
        "group",
        numbers=atoms.numbers,
        positions=positions,
        forces=random.normal(size=(len(atoms), 3)),
        cell=np.array(atoms.cell) if atoms.pbc.any() else None,
    )


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("extract")
    with StructureWriter(folder / "structures.parquet") as writer:
        for index in range(30):
            writer.add(made(index))
    rows = np.arange(30)
    parts = ["even" if row % 2 == 0 else "odd" for row in rows]
    write_splits(folder / "splits.parquet", [f"s{row:03d}" for row in rows], rows, parts, expected=("even", "odd"))
    torch.manual_seed(0)
    save_file(orb._architecture("forceuq-small").state_dict(), folder / "small.safetensors")
    return {
        "structures": folder / "structures.parquet",
        "splits": folder / "splits.parquet",
        "weights": folder / "small.safetensors",
    }


def extracted(case: dict[str, Path], output: Path, **settings) -> FeatureReader:
    done = extract_features(
        **case, part="odd", kind="orb", options=OPTIONS, output=output, device="cpu", dataset="made", **settings
    )
    reader = FeatureReader([output], whole_parts="shards" not in settings)
    assert done.atoms == reader.n_atoms
    assert 0.0 < done.reading + done.graphs + done.model + done.writing <= done.seconds
    return reader


@pytest.fixture(scope="module")
def cache(case, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("cache") / "odd"
    extracted(case, output, workers=0, max_atoms_per_batch=20)
    return output


def test_rows_are_those_of_the_part_with_their_labels_and_features(case, cache):
    reader = FeatureReader([cache])
    settings = orb.Options(**OPTIONS)
    backbone = orb.load(case["weights"], settings)
    assert reader.n_structures == 15
    assert (reader.metadata.part, reader.metadata.dataset, reader.metadata.layer) == ("odd", "made", "node")
    assert reader.metadata.weights_sha256 == file_digest(case["weights"])
    seen = []
    for block in reader.blocks():
        for start, stop in zip(block.starts[:-1], block.starts[1:], strict=True):
            row = int(block.structure[start])
            seen.append(row)
            original = made(row)
            one = block.rows(start, stop)
            assert np.array_equal(one.atom, np.arange(len(original)))
            assert np.array_equal(one.number, original.numbers)
            assert np.array_equal(one.force, original.forces)
            graph = orb.graphs([original], settings)
            with torch.no_grad():
                np.testing.assert_allclose(one.features, backbone.node_features(graph), rtol=1e-5, atol=1e-5)
                np.testing.assert_allclose(one.zbl, backbone.zbl(graph), rtol=1e-5, atol=1e-6)
    assert seen == list(range(1, 30, 2))


def test_bytes_do_not_depend_on_the_workers(case, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "_WORKERS_PAY", 0)
    extracted(case, tmp_path / "odd", workers=2, max_atoms_per_batch=20)
    names = sorted(path.name for path in cache.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "odd").iterdir())
    for name in names:
        assert (cache / name).read_bytes() == (tmp_path / "odd" / name).read_bytes(), name


def read(*folders: Path) -> list[FeatureBlock]:
    return list(FeatureReader(folders).blocks())


def test_features_do_not_depend_on_the_shards(case, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_LEAST_ROW_GROUP_ATOMS", 20)
    extracted(case, tmp_path / "one", workers=0, max_atoms_per_batch=15)
    folders = [tmp_path / f"{shard}-of-3" for shard in range(3)]
    for shard, folder in enumerate(folders):
        reader = extracted(case, folder, workers=0, max_atoms_per_batch=15, shard=shard, shards=3)
        assert reader.n_atoms > 0
    for one, other in zip(read(tmp_path / "one"), read(*folders), strict=True):
        for name in ("structure", "atom", "number", "force", "zbl", "features"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("most", [9, 4])
def test_out_of_memory_halves_the_passes_and_says_so(case, cache, tmp_path, monkeypatch, caplog, most):
    """A model that has no memory for more than so many atoms: those of the largest structure, or fewer."""
    whole = orb.OrbBackbone.node_features

    def tight(self, batch):
        if (atoms := int(batch.n_node.sum())) > most:
            raise torch.OutOfMemoryError(f"tried to allocate {atoms} atoms")
        return whole(self, batch)

    monkeypatch.setattr(orb.OrbBackbone, "node_features", tight)
    settings = {"part": "odd", "kind": "orb", "options": OPTIONS, "device": "cpu", "dataset": "made", "workers": 0}
    if most == 4:
        with pytest.raises(DataError, match="record s003: its 6 atoms do not fit"):
            extract_features(**case, **settings, output=tmp_path / "odd", max_atoms_per_batch=20)
        assert not (tmp_path / "odd" / "manifest.json").exists()
        return
    done = extract_features(**case, **settings, output=tmp_path / "odd", max_atoms_per_batch=20)
    # 20 or so, then half of that: after which no pass is tried that is too large.
    assert done.out_of_memory == 1
    assert done.max_atoms <= most
    assert done.record()["out_of_memory"] == 1
    assert "out of memory" in caplog.text
    for one, other in zip(read(cache), read(tmp_path / "odd"), strict=True):
        np.testing.assert_array_equal(one.structure, other.structure)
        np.testing.assert_allclose(one.features, other.features, rtol=1e-5, atol=1e-5)


def test_passes_are_bounded_by_edges(case, cache, tmp_path, monkeypatch):
    """Copper, with 20 edges an atom, goes by itself; the molecules do not."""
    seen = []
    whole = orb.OrbBackbone.node_features
    monkeypatch.setattr(
        orb.OrbBackbone,
        "node_features",
        lambda self, batch: (seen.append(batch.n_edge.tolist()), whole(self, batch))[1],
    )
    extracted(case, tmp_path / "odd", workers=0, max_atoms_per_batch=20, max_edges_per_batch=90)
    assert all(sum(edges) <= 90 or len(edges) == 1 for edges in seen)
    assert max(map(len, seen)) > 1
    for one, other in zip(read(cache), read(tmp_path / "odd"), strict=True):
        np.testing.assert_allclose(one.features, other.features, rtol=1e-5, atol=1e-5)


def test_half_precision(case, cache, tmp_path):
    extracted(case, tmp_path / "odd", workers=0, max_atoms_per_batch=20, precision="float16")
    size = [sum(path.stat().st_size for path in folder.glob("*.parquet")) for folder in (cache, tmp_path / "odd")]
    assert size[1] < 0.7 * size[0]
    for one, other in zip(read(cache), read(tmp_path / "odd"), strict=True):
        assert other.features.dtype == np.float32
        np.testing.assert_array_equal(one.features.astype(np.float16), other.features)
    with pytest.raises(DataError, match="do not mix"):
        FeatureReader([cache, tmp_path / "odd"])


def test_small_batches_give_the_same_features(case, cache, tmp_path):
    other = extracted(case, tmp_path / "odd", workers=0, max_atoms_per_batch=1)
    pairs = [
        np.concatenate([block.features for block in reader.blocks()]) for reader in (FeatureReader([cache]), other)
    ]
    np.testing.assert_allclose(*pairs, rtol=1e-5, atol=1e-5)


def test_batches_are_bounded_and_whole():
    made_batches = list(batches(((row, made(row)) for row in range(9)), 10))
    assert [row for batch in made_batches for row, _ in batch] == list(range(9))
    assert all(sum(len(s) for _, s in batch) <= 10 or len(batch) == 1 for batch in made_batches)
    assert [len(b) for b in batches(((row, made(row)) for row in range(3)), 1)] == [1, 1, 1]


def test_a_part_that_is_not_there_is_an_error(case, tmp_path):
    with pytest.raises(DataError, match="third"):
        extract_features(
            **case, part="third", kind="orb", options=OPTIONS, output=tmp_path / "x", workers=0, device="cpu"
        )
    assert not (tmp_path / "x" / "manifest.json").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_structure_that_has_no_graph_is_named(case, tmp_path, workers, monkeypatch):
    monkeypatch.setattr(extract, "_WORKERS_PAY", 0)
    with StructureWriter(tmp_path / "bad.parquet") as writer:
        # Oganesson: in the periodic table, but not in Orb's embedding.
        writer.add(structure("heavy", "group", numbers=[118], positions=np.zeros((1, 3)), forces=np.zeros((1, 3))))
    write_splits(tmp_path / "splits.parquet", ["heavy"], [0], ["odd"], expected=("odd",))
    bad = case | {"structures": tmp_path / "bad.parquet", "splits": tmp_path / "splits.parquet"}
    with pytest.raises(DataError, match="heavy"):
        extracted(bad, tmp_path / "cache", workers=workers)
    assert not (tmp_path / "cache" / "manifest.json").exists()


def test_features_that_are_not_finite_are_an_error(case, tmp_path):
    state = orb.read_weights(case["weights"])
    name = next(key for key in state if key.startswith("model._encoder") and key.endswith("bias"))
    state[name][:] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(DataError, match="s001.*not finite"):
        extracted(case | {"weights": tmp_path / "nan.safetensors"}, tmp_path / "cache", workers=0)


def test_exported_head_continues_from_the_cached_features(case, cache, tmp_path):
    export_head(case["weights"], "orb", OPTIONS, tmp_path / "head.safetensors")
    head = ForceHead.load(tmp_path / "head.safetensors")
    settings = orb.Options(**OPTIONS)
    model = orb.load(case["weights"], settings).model
    block = next(FeatureReader([cache]).blocks())
    with torch.no_grad():
        raw = model.heads["forces"].mlp(torch.tensor(block.features)).numpy()
    phi = head.penultimate(block.features)
    assert phi.shape == (len(block), 256)
    np.testing.assert_allclose(phi @ head.out_weight.T + head.out_bias, raw, rtol=1e-4, atol=1e-5)


def test_no_gpu_where_one_is_demanded_is_an_error(case, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigurationError, match="finds no GPU"):
        extract_features(
            **case, part="odd", kind="orb", options=OPTIONS, output=tmp_path / "features", device="cuda", dataset="made"
        )
    assert not (tmp_path / "features").exists()
