"""Two processes that train together: as one process trains, through interruptions, and not beyond a failure."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from pydantic import TypeAdapter

from forceuq.data.structures import StructureWriter, read_structures
from forceuq.errors import FitError
from forceuq.finetuning.worker import Work
from forceuq.methods import StructurePart, TrainingData, load_method
from forceuq.metrics import METRICS, evaluate

ROOT = Path(__file__).parents[2]
OPTIONS = {
    "lora": {"max_epochs": 8, "batch_structures": 4, "variance_start": "zero-last"},
    "finetuned": {"max_epochs": 2, "batch_structures": 4, "variance_start": "zero-last"},
    "blip": {"max_epochs": 2, "batch_structures": 4, "passes": 3, "inference_width": 8},
}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def unfit(data: TrainingData, folder: Path) -> TrainingData:
    """Return data in which the force of one training structure overflows single precision."""
    (part,) = data.train_structures
    with StructureWriter(folder / "structures.parquet") as writer:
        for index, (_, structure) in enumerate(read_structures(part.structures)):
            writer.add(replace(structure, forces=structure.forces * 1e200) if index == 5 else structure)
    return replace(data, train_structures=(StructurePart(folder / "structures.parquet", part.splits, part.name),))


@pytest.fixture(scope="module")
def together(data, tmp_path_factory) -> Path:
    """Return the folder of what two processes fitted."""
    folder = tmp_path_factory.mktemp("together")
    plain = {
        name: json.loads(TypeAdapter(TrainingData).dump_json(each))
        for name, each in (("data", data), ("unfit", unfit(data, folder)))
    }
    (folder / "todo.json").write_text(json.dumps({**plain, "options": OPTIONS}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).with_name("several_fits.py")
    subprocess.run([*command, script, folder / "todo.json"], env=ENVIRONMENT, check=True, timeout=600)
    return folder


@pytest.mark.parametrize("kind", list(OPTIONS))
def test_two_processes_have_the_loss_curve_and_the_metrics_of_one(together, data, tmp_path, kind):
    method = load_method(kind)
    alone = method.fit(data, method.Options(**OPTIONS[kind]), 3, tmp_path)
    shared = method.load(together / kind, data.backbone)
    one, two = (np.array(fit.report["training"]["trace"][1:]) for fit in (alone, shared))
    assert one.shape == two.shape == (OPTIONS[kind]["max_epochs"], 2)
    np.testing.assert_allclose(two, one, rtol=2e-6)
    assert shared.report["processes"]["count"] == 2
    assert shared.report["training"]["trace"][0][1] == pytest.approx(alone.report["training"]["trace"][0][1], rel=1e-6)
    if kind == "blip":
        np.testing.assert_allclose(shared.floor, alone.floor, rtol=1e-4, atol=1e-6)
    parts = data.validation_structures
    metrics, others = (evaluate(fit.predict([], parts), [(1.0, 1.0)])[0].values for fit in (alone, shared))
    assert metrics.keys() == set(METRICS)
    for name, (value, _) in metrics.items():
        assert others[name][0] == pytest.approx(value, rel=0, abs=1e-6), name


def test_a_loss_that_is_not_finite_stops_both_processes_and_is_named(together, data, tmp_path):
    method = load_method("lora")
    with pytest.raises(FitError, match=r"training batch of structures .*s005.*the loss is (inf|nan)") as alone:
        method.fit(unfit(data, tmp_path), method.Options(**OPTIONS["lora"]), 3, tmp_path / "checkpoints")
    for rank in (0, 1):
        assert (together / f"error-{rank}.txt").read_text() == str(alone.value)


def children(pid: int) -> dict[str, psutil.Process]:
    """Return the training processes that another one started, by rank."""
    found = {}
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if "forceuq.finetuning.worker" in process.cmdline():
                found[process.environ()["RANK"]] = process
        except (psutil.NoSuchProcess, psutil.AccessDenied, KeyError):
            continue
    return found


def once_there(path: Path, since: float) -> None:
    deadline = time.monotonic() + 600
    while not (path.exists() and path.stat().st_mtime > since):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_jobs_and_processes_leave_a_training_that_ends_at_the_same_bits(together, data, tmp_path):
    method = load_method("lora")
    options = {**OPTIONS["lora"], "devices": 2}
    checkpoint = tmp_path / "member.pt"

    # The job itself is killed: its processes end too.
    Work("lora", data, options, 3, tmp_path, threads=1).save(tmp_path / "job.json")
    program = (
        "import sys; from pathlib import Path; from forceuq.finetuning.worker import read_work;"
        "from forceuq.methods import load_method; w = read_work(Path(sys.argv[1])); m = load_method(w.kind);"
        "m.fit(w.data, m.Options(**w.options), w.seed, w.checkpoints)"
    )
    job = subprocess.Popen([sys.executable, "-c", program, tmp_path / "job.json"], env=ENVIRONMENT)
    once_there(checkpoint, 0.0)
    workers = children(job.pid)
    assert sorted(workers) == ["0", "1"]
    job.kill()
    job.wait()
    _, alive = psutil.wait_procs(workers.values(), timeout=20)
    assert not alive
    assert torch.load(checkpoint)["epoch"] < 8

    # One of its processes is killed: the other is stopped, and the error names the one.
    def kill_the_second() -> None:
        once_there(checkpoint, began)
        os.kill(children(os.getpid())["1"].pid, signal.SIGKILL)

    began = time.time()
    killer = threading.Thread(target=kill_the_second)
    killer.start()
    with pytest.raises(FitError, match=r"process 1 of 2 ended by SIGKILL.*the others were stopped"):
        method.fit(data, method.Options(**options), 3, tmp_path)
    killer.join()
    assert not children(os.getpid())
    before = torch.load(checkpoint)["epoch"]
    assert 1 < before < 8

    fit = method.fit(data, method.Options(**options), 3, tmp_path)
    expected = method.load(together / "lora", data.backbone)
    assert fit.report["training"]["trace"] == expected.report["training"]["trace"]
    assert fit.values.keys() == expected.values.keys()
    assert all(torch.equal(fit.values[name], value) for name, value in expected.values.items())
    assert fit.options == expected.options
    assert "devices" not in fit.options
