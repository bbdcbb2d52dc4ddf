"""Orb, a direct force field: Rhodes et al., "Orb-v3: atomistic simulation at scale", arXiv:2504.06231.

Works with orb-models 0.5 (Python 3.11) and with 0.6 and later (3.12), whose modules moved: everything that
differs between them is in ``_graph_builder``, ``_architecture`` and
``output_is_normalised``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from forceuq.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from forceuq.backbones import InitialInvariants
    from forceuq.backbones.head import ForceHead
    from forceuq.data.structures import Structure

# Arguments of `pretrained.orb_v3_direct_architecture`; none: the published sizes.
_ARCHITECTURES: dict[str, dict[str, int]] = {
    "orb-v3-direct-20-omat": {},
    "forceuq-small": {
        "latent_dim": 96,
        "base_mlp_hidden_dim": 192,
        "base_mlp_depth": 1,
        "head_mlp_hidden_dim": 256,
        "num_message_passing_steps": 3,
    },
}
_USED = ("model.", "heads.forces.")


class Options(BaseModel):
    """Settings of an Orb backbone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Literal["orb-v3-direct-20-omat", "forceuq-small"] = Field(
        default="orb-v3-direct-20-omat", description="Sizes of the network; must fit the weights."
    )
    radius: float = Field(default=6.0, gt=0, le=6.0, description="Cutoff of the edges, Å.")
    max_num_neighbors: int = Field(default=20, ge=1, description="Neighbours an atom hears, at most.")


def _architecture(name: str) -> Any:
    from orb_models.forcefield import pretrained

    # Without a device the library would take a GPU when there is one.
    model = pretrained.orb_v3_direct_architecture(device="cpu", **_ARCHITECTURES[name])
    for unused in [head for head in model.heads if head != "forces"]:
        del model.heads[unused]
    return model


def _graph_builder(options: Options) -> Any:
    """Return (structure -> graph, graphs -> batch)."""
    import torch

    try:
        from orb_models.forcefield import atomic_system, base
    except ImportError:
        from orb_models.forcefield.forcefield_adapter import ForcefieldAtomsAdapter

        adapter = ForcefieldAtomsAdapter(radius=options.radius, max_num_neighbors=options.max_num_neighbors)
        return (
            lambda atoms: adapter.from_ase_atoms(
                atoms, device=torch.device("cpu"), output_dtype=torch.float32, graph_construction_dtype=torch.float64
            ),
            adapter.batch,
        )
    system = atomic_system.SystemConfig(radius=options.radius, max_num_neighbors=options.max_num_neighbors)
    return (
        lambda atoms: atomic_system.ase_atoms_to_atom_graphs(
            atoms,
            system,
            device=torch.device("cpu"),
            output_dtype=torch.float32,
            graph_construction_dtype=torch.float64,
        ),
        base.batch_graphs,
    )


def output_is_normalised(head: Any) -> bool:
    """Return whether a force head's forward gives the normalised output.

    Until orb-models 0.5 it did, and net force and torque were taken from that; since 0.6 forward gives eV/Å, and
    they are taken from the force itself, so that the normaliser's mean falls away with the net force.
    """
    return hasattr(head, "denormalize")


def graphs(structures: "Sequence[Structure]", options: Options) -> Any:
    """Return one batch of graphs on the CPU.

    Raises:
        DataError: a structure whose graph cannot be built, by its id.
    """
    build, batch = _graph_builder(options)
    built = []
    for structure in structures:
        try:
            built.append(build(structure.atoms()))
        except Exception as error:
            raise DataError(
                f"its graph cannot be built ({type(error).__name__}: {error})", record=structure.structure_id
            ) from error
    return batch(built)


def edges(graph: Any) -> int:
    """Return the number of edges of what ``graphs`` made."""
    return len(graph.senders)


def collate(graphs: Sequence[Any], options: Options) -> Any:
    """Return one batch of graphs or batches that ``graphs`` made."""
    return _graph_builder(options)[1](list(graphs))


class OrbBackbone:
    """An Orb with direct forces, frozen until someone asks gradients of ``model``'s parameters.

    It stays in evaluation mode: Orb has no dropout, and its normaliser must not follow the batches.
    """

    name = "orb"

    def __init__(self, model: Any, device: str = "cpu") -> None:
        from importlib.metadata import version

        self.version = f"orb-models {version('orb-models')}"
        self.model = model.to(device).eval().requires_grad_(False)
        self.node_dim = int(model.heads["forces"].mlp[0].in_features)
        self.force_scale = float(model.heads["forces"].normalizer.bn.running_var.sqrt())
        # The encoder's output is as wide as what enters the head.
        self.invariant_dims = (self.node_dim, int(model.model.rbf_transform.num_bases))
        self.device = device

    def node_features(self, batch: Any) -> "Tensor":
        """Return (n, node_dim), what enters the force head."""
        features: Tensor = self.model.model(batch.to(self.device))["node_features"]
        return features

    def zbl(self, batch: Any) -> "Tensor":
        """Return (n, 3) eV/Å, the Ziegler-Biersack-Littmark repulsion that Orb adds after its head."""
        forces: Tensor = self.model.pair_repulsion_fn(batch.to(self.device))["forces"]
        return forces

    def forces(self, batch: Any) -> "Tensor":
        """Return (n, 3) eV/Å, the model's own forces."""
        forces: Tensor = self.model.predict(batch.to(self.device))["forces"]
        return forces

    def head_forces(self, features: "Tensor", batch: Any) -> "Tensor":
        """Return (n, 3) eV/Å, the head's forces of node features, net force and torque removed, before ZBL."""
        forces: Tensor = self.model.heads["forces"].predict(features, batch.to(self.device))
        return forces

    def message_mlps(self) -> "dict[str, nn.Module]":
        """Return the node and edge MLPs of every interaction layer, by their names in ``model``."""
        names = ("_node_mlp", "_edge_mlp")
        return {
            f"model.gnn_stacks.{index}.{name}": getattr(layer, name)
            for index, layer in enumerate(self.model.model.gnn_stacks)
            for name in names
        }

    def acts_on(self, name: str) -> Literal["nodes", "edges"]:
        """Return whether an MLP of ``message_mlps`` has an atom or an edge in each row."""
        return "edges" if name.endswith("._edge_mlp") else "nodes"

    def initial_invariants(self, batch: Any) -> "InitialInvariants":
        """Return the encoded atoms and the edges' radial basis.

        Orb's initial edge attributes are the products of 8 Bessel functions of the distance, under an envelope,
        and 16 spherical harmonics of the direction. Only those with the constant harmonic (l = 0), the Bessel
        functions themselves, are invariant; what the encoder makes of all of them is not.
        """
        from forceuq.backbones import InitialInvariants

        batch = batch.to(self.device)
        gns = self.model.model
        products = gns.featurize_edges(batch)
        return InitialInvariants(
            nodes=gns._encoder._node_fn(gns.featurize_nodes(batch)),
            edges=products.view(-1, self.invariant_dims[1], gns.angular_transform.dim)[:, :, 0],
            senders=batch.senders,
            receivers=batch.receivers,
            n_node=batch.n_node,
            n_edge=batch.n_edge,
        )

    def force_mlp(self) -> "tuple[str, nn.Module]":
        """Return the force head's MLP with its name in ``model``."""
        return "heads.forces.mlp", self.model.heads["forces"].mlp

    def head(self) -> "ForceHead":
        """Return the force head's layers and what follows them."""
        from torch import nn

        from forceuq.backbones.head import ForceHead

        head = self.model.heads["forces"]
        linear = [layer for layer in head.mlp.modules() if isinstance(layer, nn.Linear)]
        activations = {
            type(layer).__name__.lower()
            for layer in head.mlp.modules()
            if not list(layer.children()) and not isinstance(layer, (nn.Linear, nn.Identity, nn.Dropout))
        }
        if len(activations) != 1:
            raise DataError(f"the force head has the activations {sorted(activations)}; one is needed")
        known = {"silu": "silu", "shiftedsoftplus": "ssp", "relu": "relu", "tanh": "tanh"}
        (activation,) = activations
        arrays = [(x.weight.detach().cpu().numpy(), x.bias.detach().cpu().numpy()) for x in linear]
        return ForceHead(
            weights=tuple(arrays[:-1]),
            activation=known.get(activation, activation),
            out_weight=arrays[-1][0],
            out_bias=arrays[-1][1],
            mean=head.normalizer.bn.running_mean.cpu().numpy().reshape(1).astype(np.float32),
            std=head.normalizer.bn.running_var.sqrt().cpu().numpy().reshape(1).astype(np.float32),
            remove_mean=head.remove_mean,
            remove_torque=head.remove_torque_for_nonpbc_systems,
        )


def read_weights(path: Path) -> "dict[str, Tensor]":
    """Return a checkpoint's tensors, from safetensors or from a torch file read without unpickling code.

    Raises:
        DataError: the file is missing, damaged, or would have to run code to be read.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        kind = "not safetensors" if isinstance(error, SafetensorError) else type(error).__name__
        raise DataError(
            f"cannot be read as weights ({kind}: {error}); fetch it again, from its publisher", file=path
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise DataError("holds something else than named tensors", file=path)
    return state


def load(weights: Path, options: Options, device: str = "cpu") -> OrbBackbone:
    """Return an Orb with weights read from a file.

    Args:
        weights: ``.safetensors`` or a published ``.ckpt``.
        options: architecture and graph.
        device: where the model runs.

    Raises:
        DataError: the file cannot be read, or is not of this architecture (naming the tensors at fault).
    """
    model = _architecture(options.architecture)
    state = {name: value for name, value in read_weights(weights).items() if name.startswith(_USED)}
    expected = model.state_dict()
    missing = sorted(set(expected) - set(state))
    unexpected = sorted(set(state) - set(expected))
    shapes = sorted(n for n in set(expected) & set(state) if expected[n].shape != state[n].shape)
    if missing or unexpected or shapes:
        faults = [
            f"{what}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
            for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
            if names
        ]
        raise DataError(f"not weights of {options.architecture}; {'; '.join(faults)}", file=weights)
    model.load_state_dict(state)
    return OrbBackbone(model, device)


def untrained(weights: Path, options: Options, seed: int, device: str = "cpu") -> OrbBackbone:
    """Return an Orb with random weights; the normaliser of the forces is that of the weights in a file."""
    import torch

    normaliser = load(weights, options).model.heads["forces"].normalizer.state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _architecture(options.architecture)
    model.heads["forces"].normalizer.load_state_dict(normaliser)
    return OrbBackbone(model, device)
