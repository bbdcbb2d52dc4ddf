"""Low-rank adapters, and the batches that they are trained on."""

import copy

import pytest
import torch

from forceuq.backbones import orb
from forceuq.data.structures import read_structures
from forceuq.finetuning.frames import Frames
from forceuq.finetuning.lora import LoRALinear, inject, merge

SMALL = orb.Options(architecture="forceuq-small")


@pytest.fixture
def adapted(case):
    backbone = orb.load(case.source.weights, SMALL)
    batch = orb.graphs([s for _, s in read_structures(case.folder / "structures.parquet")], SMALL)
    with torch.no_grad():
        before = backbone.forces(batch)
        parameters = inject(backbone.message_mlps(), 8, 16.0, seed=0)
    return backbone, batch, before, parameters


def test_new_adapters_change_nothing(adapted):
    backbone, batch, before, _ = adapted
    with torch.no_grad():
        assert torch.equal(backbone.forces(batch), before)


def test_every_linear_layer_of_the_message_mlps_has_one(adapted):
    backbone, _, _, parameters = adapted
    mlps = backbone.message_mlps()
    assert len(mlps) == 2 * len(backbone.model.model.gnn_stacks)
    assert all(isinstance(mlp.mlp[i], LoRALinear) for mlp in mlps.values() for i in (0, 2))
    assert len(parameters) == 2 * 2 * len(mlps)


def test_merged_weights_give_the_same_forces(adapted):
    backbone, batch, before, parameters = adapted
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        change = backbone.forces(batch)
        merge(backbone.model)
        merged = backbone.forces(batch)
        assert not any(isinstance(m, LoRALinear) for m in backbone.model.modules())
        assert (change - before).abs().max() > 0.01
        torch.testing.assert_close(merged, change, rtol=1e-5, atol=1e-5)


def test_merging_is_exact_in_double_precision():
    torch.manual_seed(0)
    layer = torch.nn.Linear(7, 5).double()
    adapter = LoRALinear(copy.deepcopy(layer), 3, 6.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        adapter.lora_b.normal_()
        x = torch.randn(11, 7, dtype=torch.float64)
        expected = x @ (layer.weight + 2.0 * adapter.lora_b @ adapter.lora_a).T + layer.bias
        torch.testing.assert_close(adapter(x), expected, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(adapter.merged()(x), expected, rtol=1e-13, atol=1e-13)


def frames(case, **settings) -> Frames:
    backbone = orb.load(case.source.weights, SMALL)
    return Frames(
        case.data.train_structures + case.data.validation_structures,
        lambda structures: orb.graphs(structures, SMALL),
        lambda graphs: orb.collate(graphs, SMALL),
        backbone.zbl,
        batch_structures=4,
        **settings,
    )


@pytest.mark.parametrize("max_atoms", [1, 20, 10_000])
def test_an_epoch_has_every_structure_once_in_its_own_order(case, max_atoms, monkeypatch):
    monkeypatch.setattr("forceuq.finetuning.frames._CHUNK", 3)
    batches = frames(case, max_atoms=max_atoms)

    def ids(stream):
        return [name for batch in stream for name in batch.structure_ids]

    everything = [f"s{i:03d}" for i in range(20)]
    first, second = ids(batches.epoch(0, 1)), ids(batches.epoch(0, 2))
    assert sorted(first) == sorted(second) == ids(batches.in_order()) == everything
    assert first != second
    assert first == ids(frames(case, max_atoms=max_atoms).epoch(0, 1))
    assert first != ids(batches.epoch(1, 1))


def test_targets_are_forces_without_the_repulsion(case):
    by_id = {s.structure_id: s for _, s in read_structures(case.folder / "structures.parquet")}
    backbone = orb.load(case.source.weights, SMALL)
    largest = 0.0
    for batch in frames(case).epoch(0, 0):
        forces = torch.cat([torch.from_numpy(by_id[name].forces) for name in batch.structure_ids])
        graph = orb.graphs([by_id[name] for name in batch.structure_ids], SMALL)
        zbl = backbone.zbl(graph).double()
        torch.testing.assert_close(batch.target.double(), forces - zbl, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            expected, found = backbone.node_features(graph), backbone.node_features(batch.graph)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        largest = max(largest, float(zbl.abs().max()))
    assert largest > 0


def test_head_forces_and_repulsion_are_the_models_own(case):
    backbone = orb.load(case.source.weights, SMALL)
    batch = orb.graphs([s for _, s in read_structures(case.folder / "structures.parquet")], SMALL)
    with torch.no_grad():
        own = backbone.head_forces(backbone.node_features(batch), batch) + backbone.zbl(batch)
        torch.testing.assert_close(own, backbone.forces(batch), rtol=0, atol=0)
