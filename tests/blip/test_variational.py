"""Variational layers against weights that are really drawn, and the divergence against a Monte Carlo estimate."""

import math

import pytest
import torch
from torch import nn

from forceuq.blip.noise import StructureNoise, fresh_noise
from forceuq.blip.variational import (
    InferenceNetwork,
    Perturbation,
    VariationalLinear,
    kl_per_weight,
    make_variational,
)


@pytest.mark.parametrize("probability", [0.05, 0.2, 0.7])
@pytest.mark.parametrize("alpha", [0.003, 0.25, 4.0])
def test_divergence_is_that_of_sampled_weights(alpha, probability):
    generator = torch.Generator().manual_seed(0)
    theta = -0.7
    prior = torch.distributions.Normal(
        torch.zeros((), dtype=torch.float64), math.sqrt(probability / (1 - probability)) * abs(theta)
    )
    posterior = torch.distributions.Normal(torch.tensor(theta, dtype=torch.float64), math.sqrt(alpha) * abs(theta))
    weights = theta + math.sqrt(alpha) * abs(theta) * torch.randn(400_000, dtype=torch.float64, generator=generator)
    ratio = posterior.log_prob(weights) - prior.log_prob(weights)
    error = ratio.std() / math.sqrt(len(ratio))
    found = kl_per_weight(torch.tensor(alpha, dtype=torch.float64), probability)
    assert abs(found - ratio.mean()) < 5 * error
    assert error < 0.05 * found


def test_divergence_is_lowest_at_the_priors_own_scale():
    alpha = torch.logspace(-4, 2, 2001, dtype=torch.float64)
    values = kl_per_weight(alpha, 0.2)
    assert alpha[values.argmin()] == pytest.approx(0.25, rel=0.01)
    assert values.min() == pytest.approx(2.0, rel=1e-4)


def layer(epsilon=0.0, draw=fresh_noise):
    base = nn.Linear(7, 5)
    perturbation = Perturbation(draw=draw)
    return base, perturbation, VariationalLinear(base, "edges", 1, epsilon, perturbation)


def test_output_has_the_moments_of_sampled_weights():
    torch.manual_seed(0)
    base, perturbation, variational = layer()
    x = torch.randn(2, 7)
    alpha = torch.tensor([0.05, 0.6])
    n = 60_000
    perturbation.scales = {"edges": torch.stack([torch.full((2,), 9.0), alpha], 1).repeat(n, 1)}
    with torch.no_grad():
        found = variational(x.repeat(n, 1)).view(n, 2, 5).double()
        drawn = []
        for row in range(2):
            noise = torch.randn(n, 5, 7)
            weights = base.weight * (1 + alpha[row].sqrt() * noise)
            drawn.append(weights @ x[row] + base.bias)
        sampled = torch.stack(drawn, 1).double()
    deviation = sampled.std(dim=0)
    assert ((found.mean(0) - sampled.mean(0)).abs() < 5 * deviation * math.sqrt(2 / n)).all()
    torch.testing.assert_close(found.std(0), deviation, rtol=0.02, atol=0)
    # Outputs of one layer are uncorrelated under both.
    correlation = torch.corrcoef(found[:, 1].T) - torch.eye(5)
    assert correlation.abs().max() < 0.02
    # The analytic moments too.
    variance = alpha[:, None] * (x[:, None, :] ** 2 * base.weight.detach() ** 2).sum(-1)
    torch.testing.assert_close(found.var(0).float(), variance, rtol=0.03, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_there_is_noise_whatever_the_mode(training):
    _, perturbation, variational = layer()
    variational.train(training)
    x = torch.randn(3, 7)
    perturbation.scales = {"edges": torch.full((3, 2), 0.1)}
    assert not torch.equal(variational(x), variational(x))


def test_scales_of_zero_and_no_noise_give_the_linear_layer():
    base, perturbation, variational = layer()
    x = torch.randn(3, 7)
    perturbation.scales = {"edges": torch.zeros(3, 2)}
    assert torch.equal(variational(x), base(x))
    perturbation.draw = None
    perturbation.scales = {}
    assert torch.equal(variational(x), base(x))


def test_gradients_are_finite_where_a_row_or_its_scale_is_zero():
    _, perturbation, variational = layer(epsilon=1e-12)
    x = torch.zeros(3, 7, requires_grad=True)
    scales = torch.zeros(3, 2, requires_grad=True)
    perturbation.scales = {"edges": scales}
    variational(x).sum().backward()
    variational(torch.randn(3, 7)).sum().backward()
    assert x.grad.isfinite().all()
    assert scales.grad.isfinite().all()


def test_every_linear_layer_has_its_own_column():
    mlps = {"a._node": nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 3)), "a._edge": nn.Linear(2, 2)}
    mlps["a._edge"] = nn.Sequential(mlps["a._edge"])
    made = make_variational(mlps, lambda name: "edges" if "edge" in name else "nodes", 0.0, Perturbation())
    assert [(x.name, x.rows, x.index, x.weights) for x in made] == [
        ("a._node.0", "nodes", 0, 12),
        ("a._node.2", "nodes", 1, 12),
        ("a._edge.0", "edges", 0, 4),
    ]
    assert all(isinstance(mlps["a._node"][i], VariationalLinear) for i in (0, 2))


@pytest.mark.parametrize("link", ["softplus", "odds"])
def test_scales_start_alike_and_come_to_depend_on_the_input(link):
    network = InferenceNetwork(
        4, 3, depth=2, width=8, link=link, start=0.01, generator=torch.Generator().manual_seed(0)
    )
    x = torch.randn(20, 4)
    torch.testing.assert_close(network(x), torch.full((20, 3), 0.01))
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(3):
        optimiser.zero_grad()
        (network(x).log() * x[:, :1]).sum().backward()
        optimiser.step()
    assert (network(x).std(dim=0) > 0).all()
    assert (network(100 * x) > 0).all()


SIZES = {"nodes": [1, 4, 30], "edges": [0, 12, 500]}
IDS = ("x", "y", "z")


def drawn(ids, sizes, seed=1, index=0):
    noise = StructureNoise(ids, sizes, seed, index, "cpu")
    return [noise(rows, torch.empty(sum(sizes[rows]), 6)) for rows in ("edges", "nodes", "edges")]


def test_a_structures_noise_is_its_own():
    together = drawn(IDS, SIZES)
    for i, name in enumerate(IDS):
        alone = drawn((name,), {rows: [n[i]] for rows, n in SIZES.items()})
        for rows, whole, one in zip(("edges", "nodes", "edges"), together, alone, strict=True):
            start = sum(SIZES[rows][:i])
            assert torch.equal(whole[start : start + SIZES[rows][i]], one)


def test_noise_is_standard_normal_and_new_in_every_layer_pass_structure_and_seed():
    sizes = {"nodes": [3000], "edges": [3000]}
    draws = [
        *drawn(("x",), sizes),
        *drawn(("x",), sizes, index=1),
        *drawn(("x",), sizes, seed=2),
        *drawn(("y",), sizes),
    ]
    table = torch.stack([numbers.flatten() for numbers in draws]).double()
    n = table.shape[1]
    assert table.mean(1).abs().max() < 5 / math.sqrt(n)
    assert (table.var(1) - 1).abs().max() < 5 * math.sqrt(2 / n)
    assert (table.pow(4).mean(1) - 3).abs().max() < 5 * math.sqrt(96 / n)
    assert (torch.corrcoef(table) - torch.eye(len(table))).abs().max() < 5 / math.sqrt(n)
