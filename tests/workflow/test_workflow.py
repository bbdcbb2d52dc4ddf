"""The whole workflow on a tiny configuration: what comes out, what runs again, and what survives a kill."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import yaml

from forceuq.applied.chosen import choose, predicted
from forceuq.applied.predictor import Predictor
from forceuq.data.splits import read_part
from forceuq.data.structures import read_structures
from forceuq.predictions import read_predictions, unpack_symmetric

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

AFTER_METRICS = {
    "compare": 2,
    "merge_metrics": 1,
    "table2": 1,
    "recalibration_figure": 1,
    "shift_figure": 1,
    "ledger": 1,
}
AFTER_FITS = {**AFTER_METRICS, "costs": 1, "table1": 1}
FITS = 4  # two methods, two tasks, one seed


def test_everything_is_there_and_the_metrics_are_complete(finished):
    run = finished.folder / "results/tiny"
    metrics = pd.read_parquet(run / "metrics.parquet")
    expected = {("molecules", s) for s in ("validation", "id", "ood")}
    expected |= {("alloys", s) for s in ("validation", "id", "near", "mid", "far", "metals", "ternaries")}
    assert set(zip(metrics["dataset"], metrics["split"], strict=True)) == expected
    counts = metrics.groupby(["dataset", "split", "method", "calibration", "seed"])["metric"].nunique()
    assert len(counts) == len(expected) * 2 * 3
    assert counts.nunique() == 1
    assert metrics.loc[metrics["value"].isna(), "note"].notna().all()
    mae = metrics[metrics["metric"] == "mae"].set_index(["dataset", "split", "method", "calibration"])["value"]
    assert (mae.groupby(level=[0, 1, 2]).nunique() == 1).all(), "a calibration changed the mean"
    for file in (
        "tables/table2.csv",
        "tables/table2.md",
        "tables/table2.tex",
        "tables/costs.md",
        "comparisons/molecules.csv",
        "figures/shift/shift.png",
        "figures/shift/shift.csv",
        "tables/table1.md",
        "figures/recalibration/bll-mse.pdf",
        "figures/surface/molecules/methylamine/surface.png",
        "figures/surface/alloys/mptrj/surfaces/bll-pretrained.parquet",
    ):
        assert (run / file).stat().st_size > 0, file
    assert not list(run.rglob("*.part*")), "a temporary file was left"


def test_the_shipped_weights_are_those_of_their_record(finished):
    record = yaml.safe_load((finished.folder / "forceuq/backbones/weights/forceuq-small.json").read_text())
    config = yaml.safe_load((finished.folder / "config/demo.yaml").read_text())
    assert config["backbone"]["weights"]["sha256"] == record["weights_sha256"]


def test_a_second_run_does_nothing(finished):
    assert finished.would_run() == {}
    before = (finished.folder / "results/tiny/metrics.parquet").stat().st_mtime_ns
    finished.snakemake()
    assert (finished.folder / "results/tiny/metrics.parquet").stat().st_mtime_ns == before


def test_comments_docstrings_and_touches_rerun_nothing(project):
    project.edit("forceuq/bll/evidence.py", '"""', '"""Reworded. ')
    with (project.folder / "workflow_scripts/fit.py").open("a") as handle:
        handle.write("\n# a comment\n")
    (project.folder / "forceuq/metrics.py").touch()
    (project.folder / "workflow_scripts/table2.py").touch()
    assert project.would_run() == {}


def test_editing_the_bll_reruns_its_fits_and_what_follows(project):
    with (project.folder / "forceuq/bll/evidence.py").open("a") as handle:
        handle.write("\n_CHANGED = 1\n")
    expected = {"fit": FITS, "predict": FITS, "calibrate": FITS, "metrics": FITS, "surface_figure": 2, **AFTER_FITS}
    assert project.would_run() == expected


def test_editing_a_figure_reruns_it_alone(project):
    with (project.folder / "forceuq/figures/shift.py").open("a") as handle:
        handle.write("\n_CHANGED = 1\n")
    assert project.would_run() == {"shift_figure": 1, "ledger": 1}


def test_editing_the_metrics_touches_no_fit(project):
    with (project.folder / "forceuq/metrics.py").open("a") as handle:
        handle.write("\n_CHANGED = 1\n")
    assert project.would_run() == {"metrics": FITS, **AFTER_METRICS}


def test_a_new_seed_adds_its_own_jobs(project):
    config = yaml.safe_load(project.config.read_text())
    config["seeds"] = [0, 1]
    project.config.write_text(yaml.safe_dump(config))
    assert project.would_run() == {"fit": 4, "predict": 4, "calibrate": 4, "metrics": 4, **AFTER_FITS}


def test_an_option_of_a_method_reruns_that_method(project):
    config = yaml.safe_load(project.config.read_text())
    config["methods"]["bll-mse"]["options"]["learning_rate"] = 2e-3
    project.config.write_text(yaml.safe_dump(config))
    expected = {"fit": 2, "predict": 2, "calibrate": 2, "metrics": 2, "surface_figure": 2, **AFTER_FITS}
    assert project.would_run() == expected


def test_another_run_shares_the_caches(project):
    config = yaml.safe_load(project.config.read_text())
    config["run"] = "other"
    project.config.write_text(yaml.safe_dump(config))
    fits = {"fit": 4, "predict": 4, "calibrate": 4, "metrics": 4}
    expected = {**fits, "surface_figure": 2, "strata_figure": 1, "sources": 1, **AFTER_FITS}
    assert project.would_run() == expected


NEW_METHOD = '''
"""Predicts no force with a variance of one."""

import numpy as np
from pydantic import BaseModel

from forceuq.features.cache import FeatureReader
from forceuq.files import write_json
from forceuq.predictions import PredictionBlock


class Options(BaseModel):
    """None."""


class Nothing:
    def save(self, directory):
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "report.json", {"seconds": {"fit": 0.0}})

    def predict(self, feature_dirs, structures=()):
        for block in FeatureReader(feature_dirs).blocks():
            n = len(block)
            part = np.full(n, block.part_index, dtype=np.int16)
            unit = np.tile([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], (n, 1))
            ids = (block.structure, block.atom, block.number, part)
            yield PredictionBlock(*ids, block.force, np.zeros((n, 3)), unit, 0.0 * unit)


def fit(data, options, seed, checkpoints, starts_from=None):
    return Nothing()


def load(directory, backbone=None):
    return Nothing()
'''


def test_a_method_is_one_file_and_one_entry_and_an_ensemble_one_entry(project):
    (project.folder / "forceuq/methods/nothing.py").write_text(NEW_METHOD)
    config = yaml.safe_load(project.config.read_text())
    config["datasets"] |= dict.fromkeys(("alloys", "metals", "ternaries"))
    config["methods"]["nothing"] = {"kind": "nothing", "label": "Nothing"}
    config["methods"]["members"] = {
        "kind": "bll",
        "label": "Member",
        "seeds": [5, 6, 7],
        "evaluate": False,
        "options": {"projection": "mse", "max_epochs": 1},
    }
    config["methods"]["ensemble"] = {
        "kind": "ensemble",
        "label": "Ensemble",
        "combines": {"method": "members", "members": [[5, 6], [6, 7]]},
    }
    project.config.write_text(yaml.safe_dump(config))
    added = {"fit": 1 + 3, "predict": 1 + 3, "combine": 2, "calibrate": 1 + 2, "metrics": 1 + 2}
    of_all = {**AFTER_FITS, "compare": 1, "sources": 1}
    assert project.would_run() == {**added, "surface_figure": 1, **of_all}
    project.snakemake()
    metrics = pd.read_parquet(project.folder / "results/tiny/metrics.parquet")
    assert set(metrics["method"]) == {"bll-mse", "bll-pretrained", "nothing", "ensemble"}
    assert set(metrics.loc[metrics["method"] == "ensemble", "seed"]) == {0, 1}
    table = (project.folder / "results/tiny/tables/table2.md").read_text()
    assert "Nothing" in table
    assert "Ensemble" in table
    assert "Member" not in table
    second = choose(project.folder / "results/tiny", "ensemble", seed=1)
    assert [member.folder.name for member in second.members] == ["seed6", "seed7"]
    assert project.would_run() == {}


def test_every_method_of_the_demo_goes_through(project):
    config = yaml.safe_load(project.config.read_text())
    demo = yaml.safe_load((project.folder / "config/demo.yaml").read_text())["methods"]
    short = {
        "bll": {"max_epochs": 2},
        "mse_head": {"max_epochs": 2},
        "swag": {"max_epochs": 2, "swag_epochs": 4, "rank": 3},
        "blip": {"max_epochs": 1, "passes": 3},
        "lora": {"max_epochs": 1},
        "finetuned": {"max_epochs": 1},
        "gp": {"subset": 50, "subset_evaluations": 5, "evaluations": 1},
    }
    config["datasets"] |= dict.fromkeys(("alloys", "metals", "ternaries"))
    config["methods"] = {
        name: {"options": short.get(method["kind"], {})}
        for name, method in demo.items()
        if method["kind"] != "ensemble"
    }
    config["methods"]["deep-ensemble"] = {"combines": {"members": [[0, 1, 2]], "sizes": [2]}}
    config["methods"]["finetuned"]["seeds"] = [0, 1, 2]
    project.config.write_text(yaml.safe_dump(config))
    project.snakemake()
    run = project.folder / "results/tiny"
    labels = [method["label"] for method in demo.values() if method.get("evaluate", True)]
    for table in ("table1.md", "table2.md"):
        text = (run / "tables" / table).read_text()
        for label in labels:
            assert f"| {label} |" in text, (table, label)
        assert "2 members" not in text
    metrics = pd.read_parquet(run / "metrics.parquet")
    assert {"deep-ensemble-2", "deep-ensemble"} <= set(metrics["method"])
    assert "lora" not in set(metrics["method"])
    assert metrics.loc[metrics["value"].isna(), "note"].notna().all()
    costs = pd.read_csv(run / "tables/table1.csv").set_index("method")
    assert costs.notna().drop(columns="peak_gpu_memory_bytes").all(axis=None)
    assert costs.loc["blip", "backbone_passes"] == 3
    assert costs.loc["deep-ensemble", "backbone_passes"] == 3
    assert costs.loc["deep-ensemble", "parameters"] > costs.loc["lora-ensemble", "parameters"] > 0
    assert costs.loc["backbone", "parameters"] == 0
    for figure in ("ensemble_size/deep-ensemble/molecules/ensemble_size.png", "recalibration/swag.png"):
        assert (run / "figures" / figure).stat().st_size > 0
    applied_alike(project)
    assert project.would_run() == {}
    # How many processes share a training's work is nothing that its result depends on; the ledger holds the
    # configuration as it stands.
    project.configure(**{f"methods.{name}.options.devices": 2 for name in ("lora", "finetuned", "blip")})
    assert project.would_run() == {"ledger": 1}


def applied_alike(project):
    """Make sure that every method predicts for structures from elsewhere what it did in the run."""
    run = project.folder / "results/tiny"
    (folder,) = (project.folder / "results/cache/datasets").glob("molecules-*")
    rows = read_part(folder / "splits.parquet", "methylamine-test")
    structures = [each for _, each in read_structures(folder / "structures.parquet", rows)]
    methods = sorted({method for method, dataset, *_ in predicted(run) if dataset == "molecules"})
    assert {"blip", "lora-ensemble", "gp-rbf"} < set(methods)
    for method in methods:
        chosen = choose(run, method, dataset="molecules", calibration="none")
        found = Predictor(chosen).predict(structures)
        (block,) = read_predictions(chosen.validation.with_name("id.parquet"))
        forces, covariance = (np.concatenate([getattr(p, name) for p in found]) for name in ("forces", "covariance"))
        np.testing.assert_allclose(forces, block.mean, rtol=1e-4, atol=1e-5, err_msg=method)
        wanted = unpack_symmetric(block.floor) + unpack_symmetric(block.spread)
        np.testing.assert_allclose(covariance, wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max(), err_msg=method)


def test_a_typo_stops_before_any_job(project):
    done = project.snakemake("--config", "calibration=[none]", check=False)
    assert done.returncode != 0
    assert "calibration: unknown key; did you mean 'calibrations'?" in done.stderr


def test_killed_and_started_again_gives_the_same_bytes(project):
    run = project.folder / "results/tiny"
    wanted = (run / "metrics.parquet").read_bytes()
    shutil.rmtree(run)
    shutil.rmtree(project.folder / "results/cache")
    # Each start goes on from what the one before was killed in.
    for stage in ("cache/logs/read_structures", "cache/logs/features", "tiny/logs/fit", "tiny/logs/predict"):
        kill_in(project, stage)
        assert not (run / "metrics.parquet").exists()
        refused = project.snakemake(check=False)
        assert "cannot be locked" in refused.stdout + refused.stderr
        unlock = [sys.executable, "workflow_scripts/unlock_stale.py", *project.command()[5:]]
        done = subprocess.run(
            unlock, cwd=project.folder, env=project.environment(), capture_output=True, text=True, check=True
        )
        assert "killed left its lock" in done.stdout
    project.snakemake()
    assert (run / "metrics.parquet").read_bytes() == wanted


def kill_in(project, stage):
    process = subprocess.Popen(
        project.command(),
        cwd=project.folder,
        env=project.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    # A job of this stage has begun when its log is there.
    while not list((project.folder / "results" / stage).rglob("*.log")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, f"{stage} never began"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
