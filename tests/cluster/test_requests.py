"""What jobs ask for grows with what they do, and keeps to what a cluster has."""

import pytest

from forceuq.bll.batches import MEMORY_BYTES
from forceuq.cluster import requests
from forceuq.cluster.kinds import effort_of_method, share_of_part, speed_of_backbone
from forceuq.cluster.requests import Limits, Request, Speed
from forceuq.data.sources import load_source
from forceuq.data.sources.mptrj import Options as MptrjOptions
from forceuq.data.sources.rmd17 import Options as Rmd17Options
from forceuq.methods import kinds, load_method
from forceuq.scratch import HELD_BYTES

MPTRJ = 49_295_660


def test_a_retry_asks_for_more_of_what_was_too_little_up_to_the_largest_node():
    request = Request(memory_mb=3000, minutes=60, cores=4, gpus=1)
    assert request.retried(1) == request
    assert request.retried(3) == Request(12_000, 240, 4, 1)
    assert request.retried(2, ["TIMEOUT"]) == Request(3000, 120, 4, 1)
    assert request.retried(2, ["OUT_OF_MEMORY"]) == Request(6000, 60, 4, 1)
    # The first is forgotten: it may have been either.
    assert request.retried(3, ["TIMEOUT"]) == Request(6000, 240, 4, 1)
    limits = Limits(memory_mb=10_000, minutes=120, cores=2)
    assert request.retried(3).within(limits) == Request(10_000, 120, 2, 1)


@pytest.mark.parametrize(
    "estimate",
    [
        requests.generating,
        requests.reading,
        lambda atoms: requests.splitting(atoms // 30, atoms),
        lambda atoms: requests.caching(atoms, Speed(), "cpu", 1),
        lambda atoms: requests.caching(atoms, Speed(), "cuda", 8),
        lambda atoms: requests.fitting(atoms, 1000, "cpu"),
        lambda atoms: requests.fitting(atoms, 1000, "cuda", Speed()),
        lambda atoms: requests.predicting(atoms, "cuda", Speed(), passes=10),
        lambda atoms: requests.evaluating(atoms, atoms),
        lambda atoms: requests.comparing(atoms, 400),
        lambda atoms: requests.drawing_surfaces(atoms, atoms, 3721),
    ],
)
def test_more_atoms_never_ask_for_less(estimate):
    small, large = estimate(10_000), estimate(MPTRJ)
    assert (large.minutes * large.cores, large.memory_mb) > (small.minutes * small.cores, small.memory_mb)
    assert large.memory_mb >= small.memory_mb
    assert small.cores == 1 or small.gpus


def test_the_papers_training_fits_into_its_request():
    # 73 epochs of 184 s on four A100s, the paper's LoRA on MPtrj; and 70 of 130 s, its BLL.
    atoms = int(0.9 * MPTRJ)
    one = requests.fitting(atoms, 1000, "cuda", Speed())
    four = requests.fitting(atoms, 1000, "cuda", Speed(), devices=4)
    assert one.minutes > 4 * 73 * 184 / 60
    assert four.minutes > 73 * 184 / 60
    assert (one.gpus, four.gpus) == (1, 4)
    assert four.cores == 4 * one.cores
    # Its wall-clock time was never above 48 hours.
    assert four.minutes < 48 * 60


def test_shuffled_reads_have_the_memory_that_they_hold():
    assert HELD_BYTES == MEMORY_BYTES
    assert 2 * MEMORY_BYTES == requests.POOL_BYTES
    large = requests.fitting(MPTRJ, 1000, "cpu")
    assert large.memory_mb > 2 * MEMORY_BYTES / 10**6
    assert requests.fitting(MPTRJ, 0, "cpu").memory_mb < large.memory_mb
    more = requests.fitting(MPTRJ, 1000, "cpu", features_gib=8.0)
    assert more.memory_mb - large.memory_mb == pytest.approx(2 * (8 - 0.75) * 2**30 / 10**6, rel=0.01)
    # On a GPU they are in its own memory.
    on_gpu = requests.fitting(MPTRJ, 1000, "cuda", features_gib=48.0)
    assert on_gpu.memory_mb == requests.fitting(MPTRJ, 1000, "cuda").memory_mb


@pytest.mark.parametrize(("kind", "options"), [("mptrj", MptrjOptions()), ("rmd17", Rmd17Options())])
def test_parts_have_a_share_of_the_atoms(kind, options):
    shares = {part: share_of_part(kind, part, options) for part in load_source(kind).parts(options)}
    assert all(0 < share <= 1 for share in shares.values())
    assert len(set(shares.values())) > 1


def test_what_is_not_known_counts_whole():
    assert share_of_part("another", "train", None) == 1.0
    assert speed_of_backbone("another", None) == Speed()


@pytest.mark.parametrize("kind", [kind for kind in kinds() if hasattr(load_method(kind), "fit")])
def test_every_method_that_can_use_a_gpu_asks_for_one_when_told_to(kind):
    options = load_method(kind).Options
    assert effort_of_method(kind, options(), started=False).fits_on == "cpu"
    if "device" in options.model_fields:
        effort = effort_of_method(kind, options(device="cuda"), started=False)
        assert effort.fits_on == "cuda"


def test_what_trains_nothing_asks_for_no_gpu():
    options = load_method("bll").Options
    for projection, started in (("pretrained", False), ("nlml", True)):
        effort = effort_of_method("bll", options(projection=projection, device="cuda"), started)
        assert (effort.epochs, effort.fits_on, effort.predicts_on) == (0, "cpu", "cpu")
    assert effort_of_method("lora", load_method("lora").Options(device="cuda"), False).predicts_on == "cuda"
    swag = load_method("swag").Options(max_epochs=100, swag_epochs=40)
    assert [effort_of_method("swag", swag, started).epochs for started in (False, True)] == [140, 40]


def test_each_core_that_compares_has_memory_of_its_own():
    one, many = requests.comparing(1_000_000, 400), requests.comparing(300_000_000, 400)
    assert (one.cores, many.cores) == (1, 8)
    assert many.memory_mb == one.memory_mb + 7 * requests.COMPARER_MB
