"""A backbone with variational messages and updates: its scales, its passes, its objective. Imports torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from forceuq.backbones import InitialInvariants, TrainableBackbone
from forceuq.blip.noise import training_noise
from forceuq.blip.variational import InferenceNetwork, Link, Perturbation, Rows, kl_per_weight, make_variational
from forceuq.finetuning.frames import Batch

Draw = Callable[[Rows, Tensor], Tensor]
ROWS: tuple[Rows, ...] = ("nodes", "edges")
_ALL: Mapping[Rows, float] = {"nodes": 1.0, "edges": 1.0}


@dataclass(frozen=True)
class Design:
    """What a BLIP is made of; see ``forceuq.methods.blip.Options``, which describes each."""

    prior_probability: float
    kl_weight: float
    data_term: Literal["mse", "normalised-mse"]
    early_stopping: Literal["objective", "data"]
    scale_per: Literal["layer", "row"]
    node_inputs: Literal["initial", "environment"]
    link: Link
    inference_layers: int
    inference_width: int
    initial_scale: float
    epsilon: float
    trains: Literal["messages", "all"]


@dataclass(frozen=True)
class Terms:
    """The objective's parts: ``data``, the mean squared error in the data term's units, and ``kl``, unweighted."""

    data: Tensor
    kl: Tensor


class BlipNetwork(nn.Module):
    """A backbone whose message and update MLPs have Gaussian weights, scaled by inference networks.

    One network gives the scales of the rows that are atoms, one those of the edges. Atoms are described by their
    initial features (and, with ``node_inputs: environment``, the sum of their edges' radial attributes, in and out),
    edges by their radial attributes and the initial features of both ends. All of these are invariant, so the scales
    are, and noise of such scales turns the distribution of an equivariant backbone's forces with the structure.
    """

    def __init__(self, backbone: TrainableBackbone, design: Design, seed: int) -> None:
        super().__init__()
        self.design = design
        self.model = backbone.model
        self._backbone = backbone
        self._perturbation = Perturbation()
        self.layers = make_variational(backbone.message_mlps(), backbone.acts_on, design.epsilon, self._perturbation)
        self._weights = {
            rows: torch.tensor([layer.weights for layer in self.layers if layer.rows == rows]) for rows in ROWS
        }
        generator = torch.Generator().manual_seed(seed)
        node_dim, edge_dim = backbone.invariant_dims
        inputs = {
            "nodes": node_dim + (2 * edge_dim if design.node_inputs == "environment" else 0),
            "edges": edge_dim + 2 * node_dim,
        }
        self.inference = nn.ModuleDict(
            {
                rows: InferenceNetwork(
                    inputs[rows],
                    len(self._weights[rows]) if design.scale_per == "layer" else 1,
                    depth=design.inference_layers,
                    width=design.inference_width,
                    link=design.link,
                    start=design.initial_scale,
                    generator=generator,
                )
                for rows in ROWS
            }
        ).to(next(self.model.parameters()).device)

    def scales(self, graph: Any) -> dict[Rows, Tensor]:
        """Return alpha of nodes (n, layers) and edges (m, layers); the columns are those of ``layers``."""
        with torch.no_grad():
            found = self._backbone.initial_invariants(graph)
            inputs = {"nodes": self._of_nodes(found), "edges": _of_edges(found)}
        with _float32(inputs["nodes"]):
            return {
                rows: self.inference[rows](inputs[rows].float()).expand(-1, len(self._weights[rows])) for rows in ROWS
            }

    def _of_nodes(self, found: InitialInvariants) -> Tensor:
        if self.design.node_inputs == "initial":
            return found.nodes
        sums = found.edges.new_zeros(2, len(found.nodes), found.edges.shape[1])
        sums[0].index_add_(0, found.receivers, found.edges)
        sums[1].index_add_(0, found.senders, found.edges)
        return torch.cat([found.nodes, *sums], dim=1)

    def forward(self, graph: Any, draw: Draw | None) -> Tensor:
        """Return force (n, 3), eV/Å, before ZBL: of one pass with the noise of ``draw``, or with weights theta."""
        return self._pass(graph, self.scales(graph) if draw is not None else {}, draw)

    def passes(self, graph: Any, draws: Sequence[Draw]) -> Tensor:
        """Return the forces (k, n, 3), eV/Å, before ZBL, of k passes."""
        scales = self.scales(graph)
        return torch.stack([self._pass(graph, scales, draw) for draw in draws])

    def _pass(self, graph: Any, scales: dict[Rows, Tensor], draw: Draw | None) -> Tensor:
        self._perturbation.scales, self._perturbation.draw = scales, draw
        try:
            features = self._backbone.node_features(graph).float()
            with _float32(features):
                return self._backbone.head_forces(features, graph)
        finally:
            self._perturbation.scales, self._perturbation.draw = {}, None

    def kl(self, scales: dict[Rows, Tensor], fractions: Mapping[Rows, float] = _ALL) -> Tensor:
        """Return the divergence from the prior a weight: the mean over weights, and over each's atoms or edges.

        A batch without edges has no messages, and none of their divergence.

        Args:
            scales: alpha.
            fractions: the parts of a batch's atoms and edges that these are.
        """
        total = sum(int(weights.sum()) for weights in self._weights.values())
        terms = [
            kl_per_weight(scales[rows], self.design.prior_probability).mean(dim=0)
            * fractions[rows]
            @ weights.to(scales[rows])
            / total
            for rows, weights in self._weights.items()
            if len(scales[rows])
        ]
        return torch.stack(terms).sum()

    def terms(self, batch: Batch, draw: Draw | None = None) -> Terms:
        """Return both parts of the objective for one pass over a batch; of a shared one this process's parts of them.

        Args:
            batch: the structures.
            draw: noise; None: that of training, from torch's global generator.
        """
        scales = self.scales(batch.graph)
        error = self._pass(batch.graph, scales, draw or training_noise(batch.share))
        error = error - batch.target.to(error)
        if self.design.data_term == "normalised-mse":
            error = error / self._backbone.force_scale
        fractions: dict[Rows, float] = {"nodes": batch.of_atoms, "edges": batch.of_edges}
        return Terms(error.square().mean() * batch.of_atoms, self.kl(scales, fractions))

    def loss(self, batch: Batch) -> Tensor:
        """Return the objective: data term plus the weighted divergence."""
        found = self.terms(batch)
        return found.data + self.design.kl_weight * found.kl

    def validation_loss(self, batch: Batch) -> Tensor:
        """Return what early stopping looks at."""
        return self.loss(batch) if self.design.early_stopping == "objective" else self.terms(batch).data


def _of_edges(found: InitialInvariants) -> Tensor:
    return torch.cat([found.edges, found.nodes[found.senders], found.nodes[found.receivers]], dim=1)


def _float32(like: Tensor) -> torch.autocast:
    """Return a context without autocast: for what costs little, and is sums or logarithms rather than products."""
    return torch.autocast(like.device.type, enabled=False)
