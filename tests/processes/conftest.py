"""A small data set for the backbone that comes with forceuq: other processes cannot see a patched architecture."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import forceuq
from forceuq.data.splits import write_splits
from forceuq.data.structures import StructureWriter
from forceuq.methods import BackboneSource, StructurePart, TrainingData

_spec = importlib.util.spec_from_file_location(
    "finetuning_conftest", Path(__file__).parents[1] / "finetuning" / "conftest.py"
)
_theirs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_theirs)

# 13 in batches of four: the last has one structure, and so nothing for a second process.
PARTS = ["train"] * 13 + ["validation"] * 7


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> TrainingData:
    folder = tmp_path_factory.mktemp("processes")
    with StructureWriter(folder / "structures.parquet") as writer:
        for index in range(len(PARTS)):
            writer.add(_theirs.made(index))
    rows = np.arange(len(PARTS))
    names = ("train", "validation")
    write_splits(folder / "splits.parquet", [f"s{row:03d}" for row in rows], rows, PARTS, expected=names)
    part = {name: StructurePart(folder / "structures.parquet", folder / "splits.parquet", name) for name in names}
    weights = Path(forceuq.__file__).parent / "backbones" / "weights" / "forceuq-small.safetensors"
    return TrainingData(
        train=(),
        validation=(),
        head=folder / "head.safetensors",
        train_structures=(part["train"],),
        validation_structures=(part["validation"],),
        backbone=BackboneSource("orb", weights, {"architecture": "forceuq-small"}),
    )
