"""What the tests' own processes do: several fits one after another, and one that must fail; run under torchrun."""

import json
import sys
from pathlib import Path

import torch
from pydantic import TypeAdapter

from forceuq.errors import FitError
from forceuq.finetuning.processes import Processes
from forceuq.methods import TrainingData, load_method


def main(file: Path) -> None:
    torch.set_num_threads(1)
    todo = json.loads(file.read_text())
    data = TypeAdapter(TrainingData).validate_python(todo["data"])
    here = Processes("cpu")
    for kind, options in todo["options"].items():
        method = load_method(kind)
        fit = method.fit(data, method.Options(**options), 3, file.parent / "checkpoints")
        if here.first:
            fit.save(file.parent / kind)
    unfit = TypeAdapter(TrainingData).validate_python(todo["unfit"])
    method = load_method("lora")
    try:
        method.fit(unfit, method.Options(**todo["options"]["lora"]), 3, file.parent / "unfit")
    except FitError as error:
        (file.parent / f"error-{here.rank}.txt").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
