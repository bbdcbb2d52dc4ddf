"""Table 1: what is added up, what is averaged, and what is not known."""

import json
import time
from dataclasses import asdict

import pandas as pd
import pytest

from forceuq.errors import DataError
from forceuq.measurement import Cost, measured, read_cost
from forceuq.table1 import FitFolders, Instance, table1

METHODS = {"bll": "BLL", "ensemble": "Ensemble"}
DATASETS = {"set": "The set"}
GIB = 2**30


@pytest.fixture
def folder(tmp_path):
    """Makes a folder with a cost and, for a fit, a report."""

    def make(name, report=None, **cost):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "cost.json").write_text(json.dumps(asdict(Cost(**cost))))
        if report is not None:
            (directory / "report.json").write_text(json.dumps(report))
        return directory

    return make


def report(seconds, parameters=10, backbone=1, head=0):
    passes = {"backbone": backbone, "head": head}
    return {"seconds": {"training": seconds}, "parameters": {"trained": parameters}, "passes": passes}


@pytest.fixture
def bll(folder):
    return FitFolders(
        fits=(
            folder("fit", report(3600.0), threads=2, seconds=5.0, peak_memory_bytes=GIB),
            folder("start", report(1800.0, 99), threads=1, seconds=5.0, peak_memory_bytes=GIB // 2),
        ),
        predictions=folder("predictions", seconds=4.0, atoms=2000, peak_memory_bytes=3 * GIB),
        trained_on=(folder("train", cpu_seconds=360.0, seconds=100.0, atoms=5, peak_memory_bytes=GIB),),
        predicted=(folder("id", seconds=1.0, atoms=500), folder("ood", seconds=2.0, atoms=500)),
    )


@pytest.fixture
def member(folder):
    def make(index, parameters=7):
        return FitFolders(
            fits=(folder(f"m{index}", report(7200.0, parameters), gpu="A GPU", threads=8, peak_gpu_memory_bytes=GIB),),
            predictions=folder(f"p{index}", seconds=1.0, atoms=1000, peak_memory_bytes=GIB * index),
            trained_on=(),
            predicted=(),
        )

    return make


def test_costs_are_those_of_everything_that_was_needed(tmp_path, bll, member):
    instances = [
        Instance("set", "bll", (bll,)),
        Instance("set", "ensemble", (member(1), member(2), member(3))),
        Instance("set", "ensemble", (member(4), member(5), member(6))),
    ]
    paper = {"BLL": {"train": 10.5, "passes": 1}}
    table1(instances, tmp_path / "t.csv", METHODS, DATASETS, paper)
    table = pd.read_csv(tmp_path / "t.csv").set_index("method")
    # Two threads for an hour, one for half an hour, and six minutes of the backbone's pass.
    assert table.loc["bll", "core_hours"] == pytest.approx(2.0 + 0.5 + 0.1)
    assert table.loc["bll", "gpu_hours"] == 0.0
    assert table.loc["bll", "seconds_per_1000_atoms"] == pytest.approx(2.0 + 3.0)
    assert table.loc["bll", "parameters"] == 10
    assert table.loc["bll", "peak_memory_bytes"] == 3 * GIB
    assert table.loc["ensemble", ["gpu_hours", "core_hours", "backbone_passes", "parameters", "fits"]].tolist() == [
        6.0,
        0.0,
        3.0,
        21.0,
        2,
    ]
    assert table.loc["ensemble", "seconds_per_1000_atoms"] == pytest.approx(3.0)
    assert table.loc["ensemble", "peak_memory_bytes"] == 4.5 * GIB
    text = (tmp_path / "t.md").read_text()
    assert "| The set | BLL | 2.6 core-h | 1 | 0 | 5 | 10 | 3.00 | 1 |" in text
    assert "| The set | Ensemble | 6 GPU-h | 3 | 0 | 3 | 21 | 4.50 + 1.00 GPU | 2 |" in text
    assert "| *MPtrj* | *paper: BLL* | 10.5 A100-h | 1 |" in text
    assert r"The set & BLL & 2.6 core-h" in (tmp_path / "t.tex").read_text()


def test_a_fit_in_several_processes_costs_all_their_gpus(tmp_path, folder):
    together = {"count": 4, "gpu": "A GPU", "peak_memory_bytes": 2 * GIB, "peak_gpu_memory_bytes": 3 * GIB}
    told = {**report(3600.0), "processes": together}
    fit = FitFolders(
        fits=(folder("together", told, threads=1, seconds=5.0, peak_memory_bytes=GIB),),
        predictions=folder("of-together", seconds=1.0, atoms=1000, peak_memory_bytes=GIB),
        trained_on=(),
        predicted=(),
    )
    table1([Instance("set", "bll", (fit,))], tmp_path / "t.csv", METHODS, DATASETS)
    row = pd.read_csv(tmp_path / "t.csv").iloc[0]
    assert row[["gpu_hours", "core_hours"]].tolist() == [4.0, 0.0]
    assert row[["peak_memory_bytes", "peak_gpu_memory_bytes"]].tolist() == [2 * GIB, 3 * GIB]


def test_what_one_member_does_not_say_is_not_made_up(tmp_path, member):
    table1([Instance("set", "ensemble", (member(1), member(2, None)))], tmp_path / "t.csv", METHODS, DATASETS)
    table = pd.read_csv(tmp_path / "t.csv")
    assert pd.isna(table.loc[0, "parameters"])
    assert table.loc[0, "backbone_passes"] == 2
    assert "| – |" in (tmp_path / "t.md").read_text()


def test_what_is_damaged_is_named(tmp_path, bll):
    instances = [Instance("set", "bll", (bll,))]
    (bll.predicted[1] / "cost.json").write_text("{")
    with pytest.raises(DataError, match=r"ood/cost\.json.*run the job again"):
        table1(instances, tmp_path / "t.csv", METHODS, DATASETS)
    (bll.fits[1] / "report.json").unlink()
    with pytest.raises(DataError, match=r"start/report\.json.*fit again"):
        table1(instances, tmp_path / "t.csv", METHODS, DATASETS)
    assert not (tmp_path / "t.csv").exists()


def test_a_job_measures_itself_and_a_failed_one_leaves_nothing(tmp_path):
    held = []
    with measured(tmp_path / "job", threads=3) as cost:
        held.append(bytearray(64 * 2**20))
        began = time.process_time()
        while time.process_time() - began < 0.1:
            pass
        cost.atoms = 12
    found = read_cost(tmp_path / "job")
    assert (found.threads, found.atoms, found.gpu) == (3, 12, None)
    # Clocks of hundredths of a second; other threads may run too.
    assert found.cpu_seconds >= 0.08
    assert found.seconds >= 0.09
    assert found.peak_memory_bytes > 64 * 2**20
    with pytest.raises(RuntimeError), measured(tmp_path / "other"):
        raise RuntimeError
    assert not (tmp_path / "other").exists()
