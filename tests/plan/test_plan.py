from pathlib import Path

import pytest
import yaml
from snakemake.utils import update_config

from forceuq.configuration import load_configuration
from forceuq.errors import DataError
from forceuq.plan import Cost, Work, bll_rows, cost_of, instance_of, report, work_of
from forceuq.throughput import Throughput, read_throughput, recorded, write_throughput

ROOT = Path(__file__).parents[2]
RATES = {
    "read": 1e5, "cache": 5e4, "metrics": 2e5, "training bll": 3e5, "single fit bll": 1e6, "prediction bll": 4e5,
}  # fmt: skip


def configuration(*files, **changes):
    values = {}
    for file in files:
        update_config(values, yaml.safe_load((ROOT / "config" / file).read_text()))
    update_config(values, changes)
    return load_configuration(values)


def record(device="cpu", **changes):
    fields = {
        "device": device, "hardware": f"a {device}", "cores": 2, "backbone": "orb-v3-direct-20-omat", "width": 256,
        "measured": "2026-01-01", "rates": RATES,
    }  # fmt: skip
    return Throughput(**{**fields, **changes})


@pytest.fixture(scope="module")
def mptrj():
    return configuration("mptrj.yaml")


def test_hours_are_atoms_over_the_recorded_rate():
    work = Work("cache", "x", "x", 3, 3.6e8, "cuda", "cache")
    assert cost_of(work, {"cuda": record("cuda")}) == Cost(0.0, pytest.approx(2.0))
    # Of a processor, all cores that were measured together are paid for; of work in one thread, one.
    on_cpu = Work("cache", "x", "x", 3, 3.6e8, "cpu", "cache")
    assert cost_of(on_cpu, {"cpu": record()}) == Cost(pytest.approx(4.0), 0.0)
    for rate, stage in (("metrics", "calibrate, measure"), ("metrics", "combine"), ("read", "read and split")):
        assert cost_of(Work(stage, "x", "x", 3, 3600 * RATES[rate], "cpu", rate), {"cpu": record()}) == Cost(1.0, 0.0)


def test_what_was_not_measured_is_not_known():
    assert cost_of(Work("fit", "x", "x", 1, 1.0, "cpu", "training lora"), {"cpu": record()}).core_hours is None
    assert cost_of(Work("cache", "x", "x", 1, 1.0, "cuda", "cache"), {"cpu": record()}).gpu_hours is None
    assert cost_of(Work("fit", "gp", "x", 1, None, "cpu", "training gp"), {"cpu": record()}).core_hours is None
    assert Cost(1.0, None) + Cost(1.0, 1.0) == Cost(2.0, None)


def test_the_work_of_mptrj(mptrj):
    work = {(item.stage, item.name): item for item in work_of(mptrj, 256)}
    atoms = 49_295_660
    assert work["read and split", "mptrj"].atoms == atoms
    assert work["fetch", "mptrj"].disk == 12_188_168_685
    # All materials are in some part: the strata share the test's tenth, and are not counted four times.
    assert work["cache", "mptrj"].atoms == pytest.approx(atoms)
    assert work["cache", "mptrj"].disk == pytest.approx(atoms * (4 * 256 + 62))
    assert work["cache", "mptrj"].jobs == sum(
        mptrj.features.shards_of("mptrj", part) for part in ("train", "val", "id", "near", "mid", "far")
    )
    fit = work["fit", "bll-nlml"]
    assert (fit.jobs, fit.device, fit.rate) == (5, "cuda", "training bll")
    assert fit.atoms == pytest.approx(5 * 100 * 0.9 * atoms)
    started = work["fit", "bll-nlml-evidence"]
    assert (started.jobs, started.rate) == (5, "single fit bll")
    # Of its data it has the statistics, made once for it and the homoscedastic one; the sum counts the atoms once.
    assert started.atoms == 0
    shards = work["summarise", "bll-nlml"]
    assert (shards.jobs, shards.rate) == (5 * 64, "single fit bll")
    assert shards.atoms == pytest.approx(5 * 0.8 * atoms)
    assert work["combine", "lora-ensemble"].jobs == 3
    assert work["calibrate, measure", "lora-ensemble"].jobs == 2 * 3
    assert ("fit", "lora-ensemble") not in work
    # Members of the ensemble are fitted and predict, but are not evaluated by themselves.
    assert work["predict", "lora"].jobs == 9
    assert ("calibrate, measure", "lora") not in work
    # Each of 28 fits in the tables (1 + 3 + 5 + 5 + 5 + 3 + 3 + 3) is drawn on the test's tenth, TM23 and Alex-val-s.
    drawn = 28 * (0.1 * atoms + 2_600_000 + 5_500_000) * mptrj.bootstrap_draws
    assert (work["compare", "mptrj"].jobs, work["compare", "mptrj"].rate) == (1, "bootstrap")
    assert work["compare", "mptrj"].atoms == pytest.approx(drawn)


def test_without_statistics_by_shard_a_fit_goes_through_its_atoms():
    values = configuration("mptrj.yaml", features={"statistics_by_shard": False})
    work = {(item.stage, item.name): item for item in work_of(values, 256)}
    assert work["fit", "bll-nlml-evidence"].atoms == pytest.approx(5 * 0.9 * 49_295_660)
    assert not any(stage == "summarise" for stage, _ in work)


def test_what_costs_next_to_nothing_says_so(mptrj):
    rows = {line.split(" | ")[0]: line for line in report(mptrj, {"cpu": record()}, 10.5).splitlines()}
    assert rows["| rest"].endswith("| all | 12 | 0 | negligible | 0 |")
    assert "| negligible |" in rows["| fetch"]


def test_table_1s_row_is_one_fit_with_the_cache(mptrj):
    both = {"cpu": record(), "cuda": record("cuda")}
    chain = instance_of(mptrj, "bll-nlml-evidence", "mptrj")
    assert [(item.stage, item.name) for item in chain] == [
        ("cache", "mptrj"), ("fit", "bll-nlml-evidence"), ("fit", "bll-nlml"),
    ]  # fmt: skip
    seen = 0.9 * 49_295_660
    gpu = seen / RATES["cache"] / 3600 + 100 * seen / RATES["training bll"] / 3600
    rows = dict(bll_rows(mptrj, both, 10.5))
    assert rows["the paper"] == "10.5 A100-hours"
    assert rows["BLL, nlml (mptrj)"] == f"{gpu:.3g} GPU-hours (a cuda)"
    core = 2 * seen / RATES["single fit bll"] / 3600
    assert rows["BLL, nlml + evidence (mptrj)"] == f"{gpu:.3g} GPU-hours (a cuda) + {core:.3g} core-hours (a cpu)"
    assert dict(bll_rows(mptrj, {"cpu": record()}, 10.5))["BLL, nlml (mptrj)"] == "not known"


@pytest.mark.parametrize("files", [("paper.yaml",), ("rmd17.yaml", "overlays/forceuq-small.yaml"), ("demo.yaml",)])
def test_every_configuration_has_a_plan(files):
    text = report(configuration(*files), {}, 10.5)
    assert "| cache |" in text
    assert "not known" in text
    assert "10.5 A100-hours" in text


def test_records_are_kept_and_checked(tmp_path, mptrj):
    write_throughput(record(), tmp_path / "one.yaml")
    assert read_throughput(tmp_path / "one.yaml") == record()
    assert recorded(mptrj, [tmp_path / "one.yaml"]) == {"cpu": record()}
    write_throughput(record(backbone="other"), tmp_path / "other.yaml")
    for files, message in (
        (["other.yaml"], "other.yaml: is of the backbone other"),
        (["one.yaml", "one.yaml"], "a second record of the device 'cpu'"),
        (["none.yaml"], "no such record"),
    ):
        with pytest.raises(DataError, match=message):
            recorded(mptrj, [tmp_path / file for file in files])
    (tmp_path / "bad.yaml").write_text("device: tpu")
    with pytest.raises(DataError, match="not a record of throughputs"):
        read_throughput(tmp_path / "bad.yaml")
