"""Feature caches of synthetic, heteroscedastic forces, and a head to start from."""

import numpy as np
import pytest

from forceuq.backbones.head import ForceHead
from forceuq.features.cache import FeatureMetadata, FeatureWriter
from forceuq.methods import TrainingData

NODE, WIDTH = 6, 10


def make_head(seed=0, node=NODE):
    rng = np.random.default_rng(seed)
    return ForceHead(
        weights=(
            (
                rng.normal(size=(WIDTH, node)).astype(np.float32) / 2,
                rng.normal(size=WIDTH).astype(np.float32),
            ),
        ),
        activation="silu",
        out_weight=rng.normal(size=(3, WIDTH)).astype(np.float32) / 3,
        out_bias=rng.normal(size=3).astype(np.float32) / 10,
        mean=np.array([0.1], dtype=np.float32),
        std=np.array([1.7], dtype=np.float32),
        remove_mean=True,
        remove_torque=True,
    )


def write_cache(directory, structures, seed, sizes=(5, 1, 4), node=NODE, change=None):
    """Structures of changing sizes, single atoms among them, with noise that grows with a feature."""
    rng = np.random.default_rng(seed)
    counts = np.resize(sizes, structures)
    n = int(counts.sum())
    hidden = rng.normal(size=(n, node))
    truth = np.random.default_rng(99).normal(size=(node, 3)) / 2
    zbl = rng.normal(size=(n, 3))
    noise = 0.1 * np.exp(0.3 * hidden[:, :1])
    force = np.tanh(hidden @ truth) + noise * rng.normal(size=(n, 3)) + zbl
    if change is not None:
        change(force)
    with FeatureWriter(directory, FeatureMetadata(node, "orb", "1", "x")) as writer:
        if n:
            writer.add(
                np.repeat(np.arange(structures) * 2, counts),
                np.concatenate([np.arange(count) for count in counts]),
                rng.integers(1, 9, n),
                force,
                zbl,
                # Of different scales and means, as a backbone's node features are.
                hidden * 2.0 ** np.arange(-2, node - 2) + np.arange(node),
            )
    return directory


@pytest.fixture(scope="session")
def cache():
    return write_cache


@pytest.fixture(scope="session")
def head():
    return make_head()


@pytest.fixture(scope="session")
def data(tmp_path_factory, head):
    folder = tmp_path_factory.mktemp("force_head")
    head.save(folder / "head.safetensors")
    return TrainingData(
        train=(write_cache(folder / "train", 60, 0), write_cache(folder / "more", 30, 3)),
        validation=(write_cache(folder / "validation", 40, 1),),
        head=folder / "head.safetensors",
    )


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    return [write_cache(folder / "test", 40, 7), write_cache(folder / "ood", 20, 8)]
