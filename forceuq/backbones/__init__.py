"""Backbones: pretrained force fields that say something of each atom; one module a kind.

A backbone's module holds ``Options`` (its settings in the configuration) and ``load``; heavy imports are
inside functions, so that a configuration is checked in no time.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from forceuq.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from forceuq.backbones.head import ForceHead
    from forceuq.data.structures import Structure

_NOT_KINDS = ("head",)


class Backbone(Protocol):
    """A frozen force field seen through its last layers. Units: Å, eV/Å."""

    name: str
    version: str
    node_dim: int

    def node_features(self, batch: Any) -> "Tensor":
        """Return (n, node_dim), what enters the force head."""

    def zbl(self, batch: Any) -> "Tensor":
        """Return (n, 3), the repulsive forces that the model adds after its head; zeros if it has none."""

    def forces(self, batch: Any) -> "Tensor":
        """Return (n, 3), the model's own forces."""

    def head(self) -> "ForceHead":
        """Return the force head's layers and what follows them."""


@dataclass(frozen=True)
class InitialInvariants:
    """What a message-passing network starts from, less all that turns with the structure.

    Args:
        nodes: (n, a) initial node features.
        edges: (m, b) the part of the initial edge attributes that rotations leave as it is: a radial basis.
        senders: (m,) atom that each edge comes from.
        receivers: (m,) atom that it goes to.
        n_node: (s,) atoms of each structure of the batch, one structure after the other.
        n_edge: (s,) edges of each structure, likewise.
    """

    nodes: "Tensor"
    edges: "Tensor"
    senders: "Tensor"
    receivers: "Tensor"
    n_node: "Tensor"
    n_edge: "Tensor"


class TrainableBackbone(Backbone, Protocol):
    """A backbone whose weights can be trained: what fine-tuning needs beyond a frozen one.

    Args:
        model: all weights.
        force_scale: standard deviation of the forces as the head normalises them, eV/Å.
        invariant_dims: widths of ``InitialInvariants``' nodes and edges.
    """

    model: "nn.Module"
    force_scale: float
    invariant_dims: tuple[int, int]

    def head_forces(self, features: "Tensor", batch: Any) -> "Tensor":
        """Return (n, 3) eV/Å, the head's forces of node features, before ``zbl``; differentiable."""

    def message_mlps(self) -> "dict[str, nn.Module]":
        """Return the node and edge MLPs of every message-passing layer, by their names in ``model``."""

    def acts_on(self, name: str) -> Literal["nodes", "edges"]:
        """Return whether an MLP of ``message_mlps`` has an atom or an edge in each row."""

    def initial_invariants(self, batch: Any) -> InitialInvariants:
        """Return what the network starts from, without directions."""

    def force_mlp(self) -> "tuple[str, nn.Module]":
        """Return the force head's MLP with its name in ``model``."""


class BackboneModule(Protocol):
    """The interface of a kind's module."""

    Options: type[Any]

    def load(self, weights: Path, options: Any, device: str = "cpu") -> Backbone:
        """Return the backbone with weights read from a file."""

    def graphs(self, structures: "Sequence[Structure]", options: Any) -> Any:
        """Return one batch of graphs on the CPU; needs no model, so that other processes can do it."""

    def edges(self, graph: Any) -> int:
        """Return the number of edges of what ``graphs`` made; without it passes are bounded by atoms only."""

    def collate(self, graphs: "Sequence[Any]", options: Any) -> Any:
        """Return one batch of what ``graphs`` made; only kinds that can be fine-tuned need it."""

    def untrained(self, weights: Path, options: Any, seed: int, device: str = "cpu") -> Backbone:
        """Return the backbone with random weights, normalised as ``weights`` is; likewise."""

    def write_random(self, options: Any, output: Path) -> None:
        """Write a file of random weights; without it a plan can measure a backbone only whose weights are a file."""


def kinds() -> tuple[str, ...]:
    """Return the kinds of backbone there are, sorted."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.ispkg and m.name not in _NOT_KINDS))


def load_backbone_module(kind: str) -> BackboneModule:
    """Return the module of a kind of backbone.

    Raises:
        ConfigurationError: there is no such kind.
    """
    if kind not in kinds():
        near = difflib.get_close_matches(kind, kinds(), n=1, cutoff=0.0)
        raise ConfigurationError(f"unknown kind of backbone {kind!r}; nearest: {', '.join(near)}")
    module: Any = importlib.import_module(f"{__name__}.{kind}")
    return module  # type: ignore[no-any-return]
