"""Linear layers with Gaussian weights of input-dependent relative variance. Imports torch.

Weights are N(theta, alpha theta^2): Gaussian dropout (Kingma, Salimans and Welling, arXiv:1506.02557), where alpha is a
function of the input (Coscia, de Haan and Welling, "BLIPs", arXiv:2508.14022). Our implementation: what that
paper leaves open here is as described at each function.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

Rows = Literal["nodes", "edges"]
Link = Literal["softplus", "odds"]


def kl_per_weight(alpha: Tensor, probability: float) -> Tensor:
    """Return the divergence of N(theta, alpha theta^2) from the prior N(0, alpha_p theta^2), for each weight.

    alpha_p = p / (1 - p) is the relative variance of a weight that is dropped with probability p and scaled by
    1 / (1 - p). KL = 1/2 [(alpha + 1) / alpha_p + log alpha_p - log alpha - 1], whatever theta is; it is lowest, at
    1 / (2 alpha_p), where alpha = alpha_p.

    Args:
        alpha: of any shape, positive.
        probability: p, of the prior.
    """
    prior = probability / (1.0 - probability)
    return 0.5 * ((alpha + 1.0) / prior + math.log(prior) - torch.log(alpha) - 1.0)


@dataclass
class Perturbation:
    """How the layers of one network are perturbed in the forward pass that comes next.

    Args:
        scales: alpha of nodes (n, layers) and of edges (m, layers).
        draw: (rows, tensor) -> standard normal numbers of the tensor's shape; None: no perturbation, the weights
            are theta.
    """

    scales: Mapping[Rows, Tensor] = field(default_factory=dict)
    draw: Callable[[Rows, Tensor], Tensor] | None = None


class VariationalLinear(nn.Module):
    """A linear layer whose weights are Gaussian, by local reparametrisation (arXiv:1506.02557, eq. 6).

    The output is W x + b + sqrt(alpha (x^2)(W^2)^T + epsilon) z, z standard normal: for one row it is distributed as
    if weights were drawn for that row. The bias is not perturbed (ours). That holds in evaluation mode too: only
    ``Perturbation.draw`` says whether there is noise.
    """

    def __init__(self, base: nn.Linear, rows: Rows, index: int, epsilon: float, perturbation: Perturbation) -> None:
        super().__init__()
        self.base = base
        self.rows = rows
        self.index = index
        self.epsilon = epsilon
        self.perturbation = perturbation

    def forward(self, x: Tensor) -> Tensor:
        """Return (rows, out) of (rows, in)."""
        mean: Tensor = self.base(x)
        draw = self.perturbation.draw
        if draw is None:
            return mean
        alpha = self.perturbation.scales[self.rows][:, self.index, None]
        variance = alpha * nn.functional.linear(x.square(), self.base.weight.square())
        return torch.addcmul(mean, torch.sqrt(variance + self.epsilon), draw(self.rows, mean))


@dataclass(frozen=True)
class Layer:
    """One of the linear layers.

    Args:
        name: in the backbone's model.
        rows: what its rows are.
        index: its column of the scales.
        weights: how many it has.
    """

    name: str
    rows: Rows
    index: int
    weights: int


def make_variational(
    mlps: Mapping[str, nn.Module], acts_on: Callable[[str], Rows], epsilon: float, perturbation: Perturbation
) -> list[Layer]:
    """Replace every linear layer of some MLPs by a variational one around it, in place.

    Args:
        mlps: by name.
        acts_on: name -> what the MLP's rows are.
        epsilon: added to the variance.
        perturbation: shared by all.
    """
    made: list[Layer] = []
    columns = {"nodes": 0, "edges": 0}
    for prefix, mlp in mlps.items():
        rows = acts_on(prefix)
        for name, linear in [(n, m) for n, m in mlp.named_modules() if isinstance(m, nn.Linear)]:
            parent, _, child = name.rpartition(".")
            layer = VariationalLinear(linear, rows, columns[rows], epsilon, perturbation)
            setattr(mlp.get_submodule(parent), child, layer)
            made.append(Layer(f"{prefix}.{name}", rows, columns[rows], linear.weight.numel()))
            columns[rows] += 1
    return made


class InferenceNetwork(nn.Module):
    """Scales alpha as a function of invariant inputs: an MLP with SiLU and a positive output.

    The output is softplus(MLP), or odds p / (1 - p) of a probability p = sigmoid(MLP). The last layer's weights are
    zero at first, so that all scales start at the same value, whatever the input.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        depth: int,
        width: int,
        link: Link,
        start: float,
        generator: torch.Generator,
    ) -> None:
        """Make the network.

        Args:
            inputs: numbers that describe a row.
            outputs: scales of a row.
            depth: hidden layers.
            width: of each.
            link: what makes the output positive.
            start: scale at first.
            generator: of the hidden layers' weights, uniform as torch's linear layers are.
        """
        super().__init__()
        self.link = link
        sizes = [inputs, *([width] * depth), outputs]
        layers = [nn.Linear(n, m) for n, m in itertools.pairwise(sizes)]
        self.hidden = nn.ModuleList(layers[:-1])
        self.last = layers[-1]
        with torch.no_grad():
            for layer in layers[:-1]:
                bound = 1.0 / math.sqrt(layer.in_features)
                for tensor in (layer.weight, layer.bias):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) * (2 * bound) - bound)
            self.last.weight.zero_()
            self.last.bias.fill_(math.log(math.expm1(start)) if link == "softplus" else math.log(start))

    def forward(self, x: Tensor) -> Tensor:
        """Return (rows, outputs), positive."""
        for layer in self.hidden:
            x = nn.functional.silu(layer(x))
        raw = self.last(x)
        return nn.functional.softplus(raw) if self.link == "softplus" else torch.exp(raw)
