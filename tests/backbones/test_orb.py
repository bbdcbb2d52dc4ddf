"""The Orb backbone against the model itself, with the published architecture (random weights)."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from orb_models.forcefield import pretrained
from safetensors.torch import save_file

from forceuq.backbones import kinds, load_backbone_module, orb
from forceuq.backbones.head import ForceHead
from forceuq.data.structures import Structure, structure
from forceuq.errors import ConfigurationError, DataError

SMALL = orb.Options(architecture="forceuq-small")


def as_structure(name: str, atoms) -> Structure:
    return structure(
        name,
        "group",
        numbers=atoms.numbers,
        positions=atoms.positions,
        forces=np.zeros((len(atoms), 3)),
        cell=np.array(atoms.cell) if atoms.pbc.any() else None,
    )


@pytest.fixture(scope="module")
def structures() -> list[Structure]:
    ethanol, hydrogen, copper = molecule("CH3CH2OH"), molecule("H"), bulk("Cu", cubic=True)
    ethanol.positions[0, 0] -= 0.7  # close enough that the repulsion acts
    copper.rattle(0.1, seed=1)
    return [as_structure("ethanol", ethanol), as_structure("hydrogen", hydrogen), as_structure("copper", copper)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> tuple[Path, torch.nn.Module]:
    torch.manual_seed(0)
    model = pretrained.orb_v3_direct_architecture(device="cpu").eval()
    model.heads["forces"].normalizer.bn.running_var.fill_(2.5)
    model.heads["forces"].normalizer.bn.running_mean.fill_(0.1)
    path = tmp_path_factory.mktemp("orb") / "orb.ckpt"
    torch.save(model.state_dict(), path)
    return path, model


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    save_file(orb._architecture("forceuq-small").state_dict(), path)
    return path


def test_published_architecture_is_the_real_one(checkpoint):
    assert sum(p.numel() for p in checkpoint[1].parameters()) > 25e6


def test_features_are_those_of_a_forward_hook(checkpoint, structures):
    path, model = checkpoint
    backbone = orb.load(path, orb.Options())
    batch = orb.graphs(structures, orb.Options())
    seen = {}
    hooks = [
        model.heads["forces"].mlp.register_forward_pre_hook(lambda _, args: seen.update(node=args[0])),
    ]
    last = [m for m in model.heads["forces"].mlp.modules() if isinstance(m, torch.nn.Linear)][-1]
    hooks.append(last.register_forward_pre_hook(lambda _, args: seen.update(penultimate=args[0])))
    with torch.no_grad():
        model.predict(batch)
        node = backbone.node_features(batch)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(node, seen["node"], rtol=0, atol=0)
    phi = backbone.head().penultimate(node.numpy())
    np.testing.assert_allclose(phi, seen["penultimate"].numpy(), rtol=1e-5, atol=1e-6)


def test_last_layer_and_what_follows_give_the_models_forces(checkpoint, structures):
    path, model = checkpoint
    backbone = orb.load(path, orb.Options())
    batch = orb.graphs(structures, orb.Options())
    head = backbone.head()
    with torch.no_grad():
        own = model.predict(batch)["forces"].numpy()
        phi = head.penultimate(backbone.node_features(batch).numpy())
        zbl = backbone.zbl(batch).numpy()
    assert np.abs(zbl).max() > 0.01
    raw = phi @ head.out_weight.T + head.out_bias
    # Where in the chain the normaliser stands depends on orb-models' version; that it stands there does not.
    early = not orb.output_is_normalised(model.heads["forces"])
    if early:
        raw = raw * head.std + head.mean
    assert head.remove_mean
    assert head.remove_torque
    start = 0
    for s in structures:
        rows = slice(start, start + len(s))
        f = raw[rows] - raw[rows].mean(axis=0)
        if not s.pbc and len(s) > 1:
            # Take the net torque away by the rotation-like force field of least norm.
            r = s.positions - s.positions.mean(axis=0)
            basis = np.stack([np.cross(axis, r).ravel() for axis in np.eye(3)], axis=1)
            torque = np.cross(r, f).sum(axis=0)
            f = f - (basis @ np.linalg.lstsq(basis.T @ basis, torque, rcond=None)[0]).reshape(-1, 3)
        f = f if early else f * head.std + head.mean
        np.testing.assert_allclose(f + zbl[rows], own[rows], rtol=2e-4, atol=2e-5)
        start += len(s)


def test_features_do_not_depend_on_the_batch(small, structures):
    backbone = orb.load(small, SMALL)
    with torch.no_grad():
        together = backbone.node_features(orb.graphs(structures, SMALL))
        apart = torch.cat([backbone.node_features(orb.graphs([s], SMALL)) for s in structures])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


def test_an_atom_alone_has_finite_features(small, structures):
    backbone = orb.load(small, SMALL)
    with torch.no_grad():
        batch = orb.graphs([structures[1]], SMALL)
        assert torch.isfinite(backbone.node_features(batch)).all()
        assert torch.equal(backbone.zbl(batch), torch.zeros(1, 3))


def test_weights_of_another_architecture_are_named(checkpoint):
    with pytest.raises(DataError, match=r"not weights of forceuq-small; .*model\."):
        orb.load(checkpoint[0], SMALL)


def test_weights_without_a_force_head_are_refused(small, tmp_path):
    state = {k: v for k, v in orb.read_weights(small).items() if not k.startswith("heads.")}
    save_file(state, tmp_path / "headless.safetensors")
    with pytest.raises(DataError, match=r"missing: heads\.forces"):
        orb.load(tmp_path / "headless.safetensors", SMALL)


class _Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/nonexistent/forceuq-evil"),))


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    path = tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps({"model.x": _Evil()}))
    with pytest.raises(DataError, match="cannot be read as weights"):
        orb.load(path, orb.Options())


def test_truncated_weights_are_refused(small, tmp_path):
    path = tmp_path / "half.safetensors"
    path.write_bytes(small.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"half\.safetensors"):
        orb.load(path, SMALL)


def test_head_survives_saving(small, tmp_path):
    head = orb.load(small, SMALL).head()
    head.save(tmp_path / "head.safetensors")
    again = ForceHead.load(tmp_path / "head.safetensors")
    x = np.random.default_rng(0).normal(size=(5, 96)).astype(np.float32)
    assert np.array_equal(head.penultimate(x), again.penultimate(x))
    assert (again.activation, again.remove_mean, again.remove_torque) == ("silu", True, True)
    with pytest.raises(DataError, match="force-head"):
        ForceHead.load(small)


def test_kinds_are_found_and_typos_named():
    assert kinds() == ("orb",)
    assert load_backbone_module("orb") is orb
    with pytest.raises(ConfigurationError, match="nearest: orb"):
        load_backbone_module("orbb")
