"""A small data set, and an Orb small enough that an epoch takes a moment."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from safetensors.torch import save_file

from forceuq.backbones import orb
from forceuq.data.splits import write_splits
from forceuq.data.structures import Structure, StructureWriter, structure
from forceuq.methods import BackboneSource, StructurePart, TrainingData


def made(index: int) -> Structure:
    random = np.random.default_rng(index)
    atoms = (molecule("H2O"), bulk("Cu", cubic=True), molecule("CH4"), molecule("H"))[index % 4]
    shift = 0.05 * random.normal(size=(len(atoms), 3))
    return structure(
        f"s{index:03d}",
        "group",
        numbers=atoms.numbers,
        positions=atoms.positions + shift,
        forces=-20 * shift + 0.1 * random.normal(size=(len(atoms), 3)),
        cell=np.array(atoms.cell) if atoms.pbc.any() else None,
    )


@dataclass(frozen=True)
class Case:
    data: TrainingData
    source: BackboneSource
    test: tuple[StructurePart, ...]
    folder: Path

    def with_nan(self, tmp_path: Path) -> TrainingData:
        """Return the data with one training structure whose force overflows single precision."""
        structures = tmp_path / "structures.parquet"
        with StructureWriter(structures) as writer:
            for index in range(24):
                one = made(index)
                writer.add(replace(one, forces=one.forces * 1e200) if index == 5 else one)
        parts = (replace(self.data.train_structures[0], structures=structures),)
        return replace(self.data, train_structures=parts)


@pytest.fixture(scope="module", autouse=True)
def _tiny():
    """Make the small architecture smaller still, for this folder's tests."""
    with pytest.MonkeyPatch.context() as patch:
        tiny = {
            "latent_dim": 16,
            "base_mlp_hidden_dim": 24,
            "base_mlp_depth": 1,
            "head_mlp_hidden_dim": 20,
            "num_message_passing_steps": 2,
        }
        patch.setitem(orb._ARCHITECTURES, "forceuq-small", tiny)
        yield


@pytest.fixture(scope="module")
def case(tmp_path_factory, _tiny) -> Case:
    folder = tmp_path_factory.mktemp("finetuning")
    with StructureWriter(folder / "structures.parquet") as writer:
        for index in range(24):
            writer.add(made(index))
    rows = np.arange(24)
    parts = ["train"] * 14 + ["validation"] * 6 + ["test"] * 4
    names = ("train", "validation", "test")
    write_splits(folder / "splits.parquet", [f"s{row:03d}" for row in rows], rows, parts, expected=names)
    torch.manual_seed(0)
    model = orb._architecture("forceuq-small")
    model.heads["forces"].normalizer.bn.running_var.fill_(2.0)
    save_file(model.state_dict(), folder / "weights.safetensors")
    source = BackboneSource("orb", folder / "weights.safetensors", {"architecture": "forceuq-small"})
    part = {name: StructurePart(folder / "structures.parquet", folder / "splits.parquet", name) for name in names}
    data = TrainingData(
        train=(),
        validation=(),
        head=folder / "head.safetensors",
        train_structures=(part["train"],),
        validation_structures=(part["validation"],),
        backbone=source,
    )
    return Case(data, source, (part["test"], part["validation"]), folder)
