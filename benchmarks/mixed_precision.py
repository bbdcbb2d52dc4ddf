"""What bfloat16 matrix products do to training: validation loss and time beside float32, epoch by epoch, in one run.

    python benchmarks/mixed_precision.py [epochs] [structures] [device]

Rattled water, methane, copper and silicon with a harmonic force and noise that depends on the element; the backbone is
forceuq-small. Both precisions see the same batches from the same start.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from ase.build import bulk, molecule

import forceuq
from forceuq.data.splits import write_splits
from forceuq.data.structures import StructureWriter, structure
from forceuq.methods import BackboneSource, StructurePart, TrainingData, load_method

OPTIONS = {
    "lora": {"variance_start": "zero-last"},
    "finetuned": {"variance_start": "zero-last"},
    "blip": {},
}


def data(folder: Path, n: int) -> TrainingData:
    random = np.random.default_rng(0)
    kinds = (molecule("H2O"), molecule("CH4"), bulk("Cu", cubic=True), bulk("Si", cubic=True))
    with StructureWriter(folder / "structures.parquet") as writer:
        for index in range(n):
            atoms = kinds[index % len(kinds)]
            shift = 0.05 * random.normal(size=(len(atoms), 3))
            noise = np.where(atoms.numbers == 1, 0.4, 0.1)[:, None] * random.normal(size=shift.shape)
            writer.add(
                structure(
                    f"s{index}",
                    "group",
                    numbers=atoms.numbers,
                    positions=atoms.positions + shift,
                    forces=noise - 20 * shift,
                    cell=np.array(atoms.cell) if atoms.pbc.any() else None,
                )
            )
    names = ["train" if index < 0.75 * n else "validation" for index in range(n)]
    ids = [f"s{index}" for index in range(n)]
    write_splits(folder / "splits.parquet", ids, np.arange(n), names, expected=("train", "validation"))
    parts = {
        name: (StructurePart(folder / "structures.parquet", folder / "splits.parquet", name),) for name in set(names)
    }
    weights = Path(forceuq.__file__).parent / "backbones" / "weights" / "forceuq-small.safetensors"
    return TrainingData(
        train=(),
        validation=(),
        head=folder / "head.safetensors",
        train_structures=parts["train"],
        validation_structures=parts["validation"],
        backbone=BackboneSource("orb", weights, {"architecture": "forceuq-small"}),
    )


def main(epochs: int, n: int, device: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = data(folder, n)
        print(f"{n} structures, {epochs} epochs, {device}; validation loss in float32")
        print(f"{'':10} {'start':>8} {'float32':>9} {'bfloat16':>9} {'difference':>11} {'s, ratio':>9}")
        for kind, options in OPTIONS.items():
            method = load_method(kind)
            reports = {}
            for precision in (32, "bf16-mixed"):
                chosen = method.Options(
                    **options,
                    max_epochs=epochs,
                    patience=epochs,
                    batch_structures=16,
                    device=device,
                    precision=precision,
                )
                fit = method.fit(given, chosen, 0, folder / f"{kind}-{precision}")
                reports[precision] = fit.report
            traces = {precision: np.array(r["training"]["trace"][1:]) for precision, r in reports.items()}
            best = {precision: trace[:, 1].min() for precision, trace in traces.items()}
            seconds = [r["seconds"]["training"] for r in reports.values()]
            print(
                f"{kind:10} {reports[32]['training']['trace'][0][1]:8.3f} {best[32]:9.4f} {best['bf16-mixed']:9.4f}"
                f" {best['bf16-mixed'] - best[32]:+11.4f} {seconds[1] / seconds[0]:9.2f}"
            )


if __name__ == "__main__":
    given = sys.argv[1:]
    main(
        int(given[0]) if given else 20,
        int(given[1]) if len(given) > 1 else 240,
        given[2] if len(given) > 2 else "cpu",
    )
