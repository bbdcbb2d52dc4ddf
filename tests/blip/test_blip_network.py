"""The network: deterministic where it must be, noisy where it must be, scales that do not turn with the structure."""

import dataclasses

import numpy as np
import pytest
import torch
from ase.build import molecule
from scipy.spatial.transform import Rotation

from forceuq.backbones import orb
from forceuq.blip.fitting import build
from forceuq.blip.noise import fresh_noise
from forceuq.data.structures import structure
from forceuq.finetuning.frames import Batch
from forceuq.methods import blip


def built(case, seed=0, **changes):
    design, rates = blip._design(blip.Options(**changes))
    return build(case.source, design, rates, seed, "cpu")


def stirred(network):
    """Give the inference networks' last layers weights, so that scales depend on the input as after training."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for part in network.inference.values():
            part.last.weight.copy_(torch.randn(part.last.weight.shape, generator=generator))
    return network


def batch_of(structures, graph):
    target = torch.from_numpy(np.concatenate([s.forces for s in structures])).float()
    return Batch(graph, target, tuple(s.structure_id for s in structures), tuple(map(len, structures)))


def test_without_noise_it_is_the_pretrained_backbone(case, structures, graph_of):
    graph = graph_of(structures)
    _, network, _ = built(case)
    pretrained = orb.load(case.source.weights, orb.Options(architecture="forceuq-small"))
    with torch.no_grad():
        expected = pretrained.head_forces(pretrained.node_features(graph), graph)
        assert torch.equal(network(graph, None), expected)


@pytest.mark.parametrize(("epsilon", "tolerance"), [(0.0, 0.0), (1e-12, 1e-4)])
def test_with_scales_of_zero_it_is_the_deterministic_network(case, structures, graph_of, epsilon, tolerance):
    graph = graph_of(structures)
    _, network, _ = built(case, epsilon=epsilon)
    with torch.no_grad():
        zero = {rows: torch.zeros_like(scales) for rows, scales in network.scales(graph).items()}
        noisy, plain = network._pass(graph, zero, fresh_noise), network(graph, None)
        perturbed = network(graph, fresh_noise)
    torch.testing.assert_close(noisy, plain, rtol=0, atol=tolerance)
    assert (perturbed - plain).abs().max() > 0.001


def test_noise_stays_on_in_evaluation_mode_and_off_when_asked(case, structures, graph_of):
    graph = graph_of(structures)
    _, network, _ = built(case)
    assert not any(module.training for module in network.modules())
    with torch.no_grad():
        one, other = network.passes(graph, [fresh_noise, fresh_noise])
        moved = [part for part, s in zip(torch.split(one - other, _sizes(structures)), structures, strict=True)]
        assert all(part.abs().max() > 0 for part in moved if len(part) > 1)
        assert torch.equal(network(graph, None), network(graph, None))


def _sizes(structures):
    return [len(s) for s in structures]


def turned(name, rotation, index=0):
    atoms = molecule(name)
    atoms.positions += 0.1 * np.random.default_rng(index).normal(size=(len(atoms), 3))
    return structure(
        f"{name}{index}",
        "group",
        numbers=atoms.numbers,
        positions=rotation.apply(atoms.positions),
        forces=np.zeros((len(atoms), 3)),
        cell=None,
    )


@pytest.mark.parametrize("node_inputs", ["initial", "environment"])
def test_scales_do_not_turn_with_the_structure(case, graph_of, node_inputs):
    backbone, network, _ = built(case, node_inputs=node_inputs)
    stirred(network)
    found = []
    for rotation in (Rotation.identity(), *Rotation.random(3, random_state=1)):
        graph = graph_of([turned("CH3CH2OH", rotation), turned("H2O", rotation)])
        # Edges come in another order after a rotation.
        order = np.lexsort([graph.receivers.numpy(), graph.senders.numpy()])
        with torch.no_grad():
            scales = network.scales(graph)
            directed = backbone.model.model.featurize_edges(graph)[order]
        found.append((scales["nodes"], scales["edges"][order], directed))
    for nodes, edges, directed in found[1:]:
        torch.testing.assert_close(nodes, found[0][0], rtol=1e-4, atol=0)
        torch.testing.assert_close(edges, found[0][1], rtol=1e-4, atol=0)
        assert (directed - found[0][2]).abs().max() > 0.1, "the attributes that the network itself sees do turn"
    assert (found[0][1].std(dim=0) > 0.01 * found[0][1].mean(dim=0)).all(), "they depend on the edge"
    assert (found[0][0].std(dim=0) > 0.01 * found[0][0].mean(dim=0)).all(), "they depend on the atom"


def test_environment_tells_atoms_of_one_element_apart(case, graph_of):
    graph = graph_of([turned("CH3CH2OH", Rotation.identity())])
    hydrogens = [i for i, n in enumerate(molecule("CH3CH2OH").numbers) if n == 1]
    spreads = {}
    for node_inputs in ("initial", "environment"):
        network = stirred(built(case, node_inputs=node_inputs)[1])
        with torch.no_grad():
            spreads[node_inputs] = network.scales(graph)["nodes"][hydrogens].std(dim=0).max().item()
    assert spreads["initial"] < 1e-6
    assert spreads["environment"] > 1e-4


def test_invariant_edge_attributes_are_the_radial_basis(case, structures, graph_of):
    graph = graph_of(structures)
    backbone, _, _ = built(case)
    r = graph.edge_features["vectors"].double().norm(dim=1)[:, None]
    n = torch.arange(1, 9, dtype=torch.float64)
    bessel = np.sqrt(2 / 6.0) * torch.sin(n * np.pi * r / 6.0) / r
    u = r / 6.0
    envelope = 1 - 15 * u**4 + 24 * u**5 - 10 * u**6
    with torch.no_grad():
        found = backbone.initial_invariants(graph)
    torch.testing.assert_close(found.edges.double(), envelope * bessel, rtol=1e-3, atol=1e-4)
    assert backbone.invariant_dims == (found.nodes.shape[1], found.edges.shape[1])


@pytest.mark.parametrize("scale_per", ["layer", "row"])
def test_objective_is_the_error_plus_the_mean_divergence(case, structures, graph_of, scale_per):
    _, network, _ = built(case, scale_per=scale_per, kl_weight=0.3)
    stirred(network)
    batch = batch_of(structures, graph_of(structures))
    with torch.no_grad():
        scales = network.scales(batch.graph)
        torch.manual_seed(3)
        loss = network.loss(batch)
        torch.manual_seed(3)
        error = (network(batch.graph, fresh_noise) - batch.target).square().mean()
    total, weights = 0.0, 0
    for layer in network.layers:
        alpha = scales[layer.rows][:, layer.index].double().numpy()
        values = 0.5 * ((alpha + 1) / 0.25 + np.log(0.25) - np.log(alpha) - 1)
        total += layer.weights * values.mean()
        weights += layer.weights
    assert loss.item() == pytest.approx(error.item() + 0.3 * total / weights, rel=1e-4)
    shared = all(torch.equal(scales["edges"][:, 0], scales["edges"][:, i]) for i in range(4))
    assert shared == (scale_per == "row")


def test_normalised_error_is_in_units_of_the_backbones_scale(case, structures, graph_of):
    batch = batch_of(structures, graph_of(structures))
    found = []
    for data_term in ("mse", "normalised-mse"):
        _, network, _ = built(case, data_term=data_term)
        torch.manual_seed(0)
        with torch.no_grad():
            found.append(network.terms(batch).data.item())
    assert found[0] == pytest.approx(2.0 * found[1], rel=1e-5)


def test_early_stopping_looks_at_what_it_is_told(case, structures, graph_of):
    batch = batch_of(structures, graph_of(structures))
    for choice in ("objective", "data"):
        _, network, _ = built(case, early_stopping=choice)
        with torch.no_grad():
            torch.manual_seed(0)
            found = network.validation_loss(batch)
            torch.manual_seed(0)
            terms = network.terms(batch)
        expected = terms.data + (0.1 * terms.kl if choice == "objective" else 0.0)
        assert found == expected


def test_atoms_without_neighbours_have_a_finite_objective(case, structures, graph_of):
    single = [s for s in structures if len(s) == 1]
    _, network, groups = built(case)
    for group in groups:
        for parameter in group.parameters.values():
            parameter.requires_grad_(True)
    loss = network.loss(batch_of(single, graph_of(single)))
    loss.backward()
    assert loss.isfinite()
    gradients = [p.grad for group in groups for p in group.parameters.values() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_what_is_trained(case):
    _, _, groups = built(case, trains="all", learning_rate=1e-4, inference_learning_rate=2e-3)
    rates = {group.name: group.learning_rate for group in groups}
    assert rates == {"messages": 1e-4, "force_head": 5e-4, "inference": 2e-3, "rest": 1e-4}
    names = [name for group in groups for name in group.parameters]
    assert len(names) == len(set(names))
    pretrained = dict(orb.load(case.source.weights, orb.Options(architecture="forceuq-small")).model.named_parameters())
    assert {name for name in names if not name.startswith("inference.")} == set(pretrained)
    fewer = built(case)[2]
    assert [group.name for group in fewer] == ["messages", "force_head", "inference"]
    assert all("_mlp" in name for name in fewer[0].parameters)


def test_every_option_of_the_design_reaches_it():
    chosen = {
        "prior_probability": 0.3,
        "kl_weight": 0.7,
        "data_term": "normalised-mse",
        "early_stopping": "data",
        "scale_per": "row",
        "node_inputs": "environment",
        "link": "odds",
        "inference_layers": 1,
        "inference_width": 32,
        "initial_scale": 0.2,
        "epsilon": 1e-8,
        "trains": "all",
    }
    assert dataclasses.asdict(blip._design(blip.Options(**chosen))[0]) == chosen
    assert all(field.description for field in blip.Options.model_fields.values())
