"""Calibrated coverage of the methods that run the backbone, on forces whose noise depends on the element."""

import numpy as np
import pytest
from ase.build import molecule

from forceuq.calibration import ValidationLikelihood, fit_calibration
from forceuq.data.splits import write_splits
from forceuq.data.structures import StructureWriter, structure
from forceuq.methods import StructurePart, TrainingData, backbone_forces, blip, finetuned, lora
from forceuq.metrics import evaluate
from forceuq.predictions import read_predictions, write_predictions

PARTS = {"train": 60, "validation": 160, "test": 240}
TRAINED = {"max_epochs": 8, "batch_structures": 20}
KINDS = {
    "backbone_forces": (backbone_forces, {}),
    "lora": (lora, {**TRAINED, "variance_start": "zero-last"}),
    "finetuned": (finetuned, {**TRAINED, "variance_start": "zero-last"}),
    "blip": (blip, {**TRAINED, "passes": 4}),
}
LABELS = {"dataset": "d", "task": "t", "method": "m", "seed": 0}


@pytest.fixture(scope="module")
def noisy(case, tmp_path_factory):
    """The case's backbone with other data: springs, and noise that is larger on heavier atoms."""
    folder = tmp_path_factory.mktemp("noisy")
    names = [part for part, count in PARTS.items() for _ in range(count)]
    with StructureWriter(folder / "structures.parquet") as writer:
        for index in range(len(names)):
            random = np.random.default_rng([7, index])
            atoms = molecule(("H2O", "CH4")[index % 2])
            shift = 0.02 * random.normal(size=(len(atoms), 3))
            noise = np.where(atoms.numbers > 1, 0.5, 0.25)[:, None]
            writer.add(
                structure(
                    f"n{index:03d}",
                    "group",
                    numbers=atoms.numbers,
                    positions=atoms.positions + shift,
                    forces=-5.0 * shift + noise * random.normal(size=(len(atoms), 3)),
                    cell=None,
                )
            )
    rows = np.arange(len(names))
    ids = [f"n{row:03d}" for row in rows]
    write_splits(folder / "splits.parquet", ids, rows, names, expected=tuple(PARTS))
    return {name: (StructurePart(folder / "structures.parquet", folder / "splits.parquet", name),) for name in PARTS}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_calibrated_coverage_in_distribution(kind, case, noisy, tmp_path):
    module, options = KINDS[kind]
    data = TrainingData((), (), case.data.head, noisy["train"], noisy["validation"], case.source)
    found = module.fit(data, module.Options(**options), 1, tmp_path)
    for split in ("validation", "test"):
        write_predictions(tmp_path / f"{split}.parquet", found.predict([], noisy[split]), {**LABELS, "split": split})
    calibration = fit_calibration(ValidationLikelihood(tmp_path / "validation.parquet"), "decoupled", LABELS)
    blocks = read_predictions(tmp_path / "test.parquet")
    (metrics,) = evaluate(blocks, [(calibration.a, calibration.b)])
    assert metrics.values["coverage_90"][0] == pytest.approx(0.90, abs=0.03)
