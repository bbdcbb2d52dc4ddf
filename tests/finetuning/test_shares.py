"""Shares of batches: together they are the batch, and so are their losses, gradients and random numbers."""

from dataclasses import replace

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from forceuq.backbones import orb
from forceuq.blip.noise import SharedNoise, fresh_noise
from forceuq.errors import ConfigurationError, DataError, FitError
from forceuq.finetuning.frames import Share, share_out
from forceuq.finetuning.launch import _cause
from forceuq.finetuning.processes import Processes
from forceuq.finetuning.source import check_device, frames_of
from forceuq.methods import blip, lora


def test_structures_are_shared_by_their_atoms():
    assert share_out([5, 1, 4, 2], 2) == [(0, 1), (2, 3)]
    assert share_out([3, 3, 3], 3) == [(0,), (1,), (2,)]
    assert share_out([7], 2) == [(0,), ()]
    sizes = [int(s) for s in torch.randint(1, 50, (64,), generator=torch.Generator().manual_seed(0))]
    shares = share_out(sizes, 8)
    assert sorted(i for share in shares for i in share) == list(range(64))
    loads = [sum(sizes[i] for i in share) for share in shares]
    assert max(loads) <= 1.02 * sum(loads) / 8


@pytest.mark.parametrize("max_atoms", [20, 10_000])
@pytest.mark.parametrize("processes", [2, 3])
def test_shares_make_the_same_batches_in_the_same_order(case, max_atoms, processes, monkeypatch):
    monkeypatch.setattr("forceuq.finetuning.frames._CHUNK", 3)
    backbone = orb.load(case.source.weights, orb.Options(architecture="forceuq-small"))
    frames = frames_of(backbone, case.source, case.data.train_structures, 4)
    frames._max_atoms = max_atoms
    whole = list(frames.epoch(3, 1))
    shares = [list(frames.epoch(3, 1, rank, processes)) for rank in range(processes)]
    assert len({len(whole), *map(len, shares)}) == 1
    stand_ins = 0
    for batch, *parts in zip(whole, *shares, strict=True):
        assert all(part.share.structure_ids == batch.structure_ids for part in parts)
        assert all(part.share.atoms == batch.sizes for part in parts)
        counted = [part for part in parts if part.share.counted]
        mine = sorted(i for part in counted for i in part.share.mine)
        assert mine == list(range(len(batch.structure_ids)))
        for part in counted:
            assert part.structure_ids == tuple(batch.structure_ids[i] for i in part.share.mine)
        assert sum(part.of_atoms for part in parts) == pytest.approx(1.0)
        stand_ins += len(parts) - len(counted)
    assert (stand_ins > 0) == (processes == 3 or max_atoms == 20)


def test_noise_of_shares_is_that_of_the_batch():
    atoms, edges = (3, 1, 4, 2), (6, 0, 12, 2)
    torch.manual_seed(0)
    expected = [fresh_noise("edges", torch.empty(20, 5)), fresh_noise("nodes", torch.empty(10, 7))]
    pieces = [torch.split(expected[0], list(edges)), torch.split(expected[1], list(atoms))]
    for mine in ((0, 2), (1, 3), (0,)):
        noise = SharedNoise(Share(("a", "b", "c", "d"), mine, atoms, edges))
        torch.manual_seed(0)
        for rows, pieces_of, sizes, out in (("edges", pieces[0], edges, 5), ("nodes", pieces[1], atoms, 7)):
            found = noise(rows, torch.empty(sum(sizes[i] for i in mine), out))
            assert torch.equal(found, torch.cat([pieces_of[i] for i in mine]))


@pytest.mark.parametrize("module", [lora, blip])
def test_losses_and_gradients_of_shares_add_up_to_the_batchs(case, module):
    from forceuq.blip import fitting
    from forceuq.finetuning import member

    if module is lora:
        recipe = lora._recipe(lora.Options(variance_start="zero-last"))
        backbone, network, groups = member.build(case.source, recipe, 0, "cpu")
        loss = network.nll
    else:
        design, rates = blip._design(blip.Options(inference_width=8, initial_scale=0.05))
        backbone, network, groups = fitting.build(case.source, design, rates, 0, "cpu")
        loss = network.loss
    parameters = [p for group in groups for p in group.parameters.values()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    frames = frames_of(backbone, case.source, case.data.train_structures, 5)
    processes = 6  # more than structures: one only stays in step

    def gradients(batches):
        for parameter in parameters:
            parameter.grad = None
        total = 0.0
        for batch in batches:
            torch.manual_seed(1)
            value = loss(batch)
            value.backward()
            total += value.item()
        return total, [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]

    whole = next(frames.epoch(0, 1))
    edges = tuple(whole.graph.n_edge.tolist())
    parts = [next(frames.epoch(0, 1, rank, processes)) for rank in range(processes)]
    assert not parts[-1].share.counted
    parts = [replace(part, share=replace(part.share, edges=edges)) for part in parts]
    expected, of_whole = gradients([whole])
    found, of_parts = gradients(parts)
    assert found == pytest.approx(expected, rel=1e-6)
    for one, other in zip(of_whole, of_parts, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    assert max(float(gradient.abs().max()) for gradient in of_whole) > 1e-3


@pytest.mark.parametrize(("module", "more"), [(lora, {"variance_start": "zero-last"}), (blip, {"inference_width": 8})])
def test_bfloat16_trains_float32_parameters_and_validates_in_float32(case, tmp_path, module, more):
    options = {"max_epochs": 2, "batch_structures": 5, **more}
    exact, mixed = (
        module.fit(case.data, module.Options(**options, precision=precision), 3, tmp_path / str(precision))
        for precision in (32, "bf16-mixed")
    )
    traces = [fit.report["training"]["trace"] for fit in (exact, mixed)]
    assert traces[0][0] == traces[1][0], "the start is validated in float32"
    assert traces[0][1][0] != traces[1][1][0]
    for one, other in zip(traces[0][1:], traces[1][1:], strict=True):
        assert other == pytest.approx(one, rel=0.02)
    assert {value.dtype for value in mixed.values.values()} == {torch.float32}


def test_another_precision_takes_up_no_checkpoint(case, tmp_path):
    options = {"max_epochs": 1, "batch_structures": 5}
    lora.fit(case.data, lora.Options(**options), 3, tmp_path)
    mixed = lora.fit(case.data, lora.Options(**options, precision="bf16-mixed"), 3, tmp_path)
    alone = lora.fit(case.data, lora.Options(**options, precision="bf16-mixed"), 3, tmp_path / "other")
    assert mixed.report["training"]["trace"] == alone.report["training"]["trace"]


def test_one_process_knows_that_it_is_alone():
    here = Processes("cpu")
    assert (here.count, here.rank, here.first) == (1, 0, True)
    assert here.total(0.1) == 0.1
    with here.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpus_that_are_not_there_are_refused():
    with pytest.raises(ConfigurationError, match="no GPU"):
        check_device("cuda", 2)


def failure(tmp_path, rank, exitcode, message=None):
    file = tmp_path / f"{rank}.json"
    if message is not None:
        text = f'{{"message": {{"message": "{message}", "extraInfo": {{"timestamp": "{100 + rank}"}}}}}}'
        file.write_text(text)
    return ProcessFailure(local_rank=rank, pid=1000 + rank, exitcode=exitcode, error_file=str(file))


def test_the_process_at_fault_is_named(tmp_path):
    reset = "RuntimeError: Connection reset by peer"
    own = {0: failure(tmp_path, 0, 1, reset), 1: failure(tmp_path, 1, 1, "DataError: x.parquet: record s1: damaged")}
    found = _cause(own, 2)
    assert isinstance(found, DataError)
    assert str(found) == "x.parquet: record s1: damaged"
    killed = {0: failure(tmp_path, 2, 1, reset), 1: failure(tmp_path, 3, -9), 2: failure(tmp_path, 4, -15)}
    found = _cause(killed, 3)
    assert isinstance(found, FitError)
    assert "process 1 of 3 ended by SIGKILL (out of memory?)" in str(found)
    other = {0: failure(tmp_path, 5, -15), 1: failure(tmp_path, 6, 1, "ValueError: odd")}
    assert "process 1 of 2 failed (ValueError: odd)" in str(_cause(other, 2))
