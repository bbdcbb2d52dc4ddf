"""What a cache in half precision changes: the metrics of BLL fits to the same features, kept in float32 and float16.

    python benchmarks/half_precision.py HEAD TRAIN VALIDATION TEST

HEAD is a head.safetensors, the others are folders of parts of a feature cache, all under results/cache/. The cached
features are written again in float16 to a temporary folder; both are fitted, calibrated with (a, b) and evaluated.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from forceuq.calibration import fit_calibrations
from forceuq.features.cache import FeatureReader, FeatureWriter
from forceuq.methods import TrainingData, load_method
from forceuq.metrics import evaluate
from forceuq.predictions import read_predictions, write_predictions

OPTIONS = {
    "pretrained": {"projection": "pretrained"},
    "mse": {"projection": "mse", "max_epochs": 50},
    "nlml + evidence": {"projection": "nlml", "max_epochs": 50},
}
SHOWN = ("mae", "nll", "ece", "spearman")


def folders_of(part: Path) -> list[Path]:
    return sorted(part.glob("*-of-*"), key=lambda folder: int(folder.name.split("-")[0]))


def in_half(folders: list[Path], output: Path) -> list[Path]:
    reader = FeatureReader(folders)
    with FeatureWriter(output, replace(reader.metadata, precision="float16")) as writer:
        for block in reader.blocks():
            writer.add(block.structure, block.atom, block.number, block.force, block.zbl, block.features)
    return [output]


def metrics(head: Path, parts: list[list[Path]], options: dict[str, object], folder: Path) -> dict[str, float]:
    train, validation, test = parts
    method = load_method("bll")
    data = TrainingData(tuple(train), tuple(validation), head)
    fitted = method.fit(data, method.Options(**options), 0, folder / "checkpoints")
    for name, part in (("validation", validation), ("test", test)):
        write_predictions(folder / f"{name}.parquet", fitted.predict(part), {"split": name})
    (found,) = fit_calibrations(folder / "validation.parquet", folder / "calibrations.json", ["decoupled"])
    pairs = [(1.0, 1.0), (found.a, found.b)]
    raw, calibrated = evaluate(read_predictions(folder / "test.parquet"), pairs)
    values = {name: raw.values[name][0] for name in SHOWN}
    return values | {f"{name} (a, b)": calibrated.values[name][0] for name in SHOWN[1:]}


def main() -> None:
    head, *parts = (Path(argument) for argument in sys.argv[1:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        single = [folders_of(part) for part in parts]
        half = [in_half(each, folder / f"half{index}") for index, each in enumerate(single)]
        for label, options in OPTIONS.items():
            rows = []
            for kind, caches in (("float32", single), ("float16", half)):
                (folder / label / kind).mkdir(parents=True)
                rows.append(metrics(head, caches, options, folder / label / kind))
            print(label)
            for metric, value in rows[0].items():
                print(f"  {metric:16} {value:10.6f} {rows[1][metric]:10.6f}  difference {rows[1][metric] - value:+.1e}")


if __name__ == "__main__":
    main()
