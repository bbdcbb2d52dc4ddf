"""Training of forceuq-small: it learns, and a stopped run ends in the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from forceuq.backbones import orb
from forceuq.backbones.small import training
from forceuq.backbones.small.options import Options
from forceuq.data.structures import StructureWriter, structure
from forceuq.errors import FitError
from forceuq.files import file_digest

OPTIONS = Options(epochs=3, batch_structures=8, threads=1, learning_rate=5e-3)
SETTINGS = orb.Options(architecture="forceuq-small")


@pytest.fixture(scope="module", autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> Path:
    """Springs between three atoms: forces that a network can learn in seconds."""
    path = tmp_path_factory.mktemp("frames") / "frames.parquet"
    random = np.random.default_rng(0)
    with StructureWriter(path) as writer:
        for index in range(44):
            part = "train" if index < 40 else "validation"
            positions = np.array([[0.0, 0, 0], [1.6, 0, 0], [0, 1.6, 0]]) + 0.15 * random.normal(size=(3, 3))
            forces = np.zeros((3, 3))
            for i in range(3):
                for j in range(3):
                    if i != j:
                        vector = positions[j] - positions[i]
                        length = np.linalg.norm(vector)
                        forces[i] += 4.0 * (length - 1.8) * vector / length
            writer.add(
                structure(
                    f"{part}/molecule/springs/{index:04d}",
                    f"{part}/molecule/springs",
                    numbers=[8, 8, 8],
                    positions=positions,
                    forces=forces,
                )
            )
    return path


@pytest.fixture(scope="module")
def uninterrupted(frames, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    training.train_small_orb(frames, folder / "w.safetensors", folder / "r.json", OPTIONS, folder / "checkpoints")
    return folder


def test_weights_fit_the_backbone_and_the_record_says_what_they_are(frames, uninterrupted):
    record = json.loads((uninterrupted / "r.json").read_text())
    weights = uninterrupted / "w.safetensors"
    assert weights.stat().st_size < 3_000_000
    assert record["weights_sha256"] == file_digest(weights)
    assert record["frames_sha256"] == file_digest(frames)
    assert Options(**record["options"]) == OPTIONS
    assert [point["epoch"] for point in record["curve"]] == [0, 1, 2]
    assert record["curve"][-1]["loss"] < record["curve"][0]["loss"]
    backbone = orb.load(weights, SETTINGS)
    held_out = training._frames(frames, "validation", SETTINGS)
    _, collate = orb._graph_builder(SETTINGS)
    assert training.held_out_errors(backbone.model, held_out, collate) == record["held_out"]


def test_it_learns(frames, tmp_path):
    options = OPTIONS.model_copy(update={"epochs": 60, "average": 0.9})
    training.train_small_orb(frames, tmp_path / "w.safetensors", tmp_path / "r.json", options, tmp_path / "c")
    held_out = json.loads((tmp_path / "r.json").read_text())["held_out"]["molecule"]
    assert held_out["mae"] < 0.3 * held_out["mean_absolute_force"]


def test_a_stopped_run_ends_in_the_same_bytes(frames, uninterrupted, tmp_path, monkeypatch):
    epoch = training._epoch

    def stopped(*arguments):
        if arguments[6] == 2:
            raise KeyboardInterrupt
        return epoch(*arguments)

    monkeypatch.setattr(training, "_epoch", stopped)
    targets = (tmp_path / "w.safetensors", tmp_path / "r.json", OPTIONS, tmp_path / "checkpoints")
    with pytest.raises(KeyboardInterrupt):
        training.train_small_orb(frames, *targets)
    assert not targets[0].exists()
    torch.rand(7)  # the state of the global generator must not matter
    epochs = []
    monkeypatch.setattr(training, "_epoch", lambda *arguments: epochs.append(arguments[6]) or epoch(*arguments))
    training.train_small_orb(frames, *targets)
    assert epochs == [2]
    assert file_digest(targets[0]) == file_digest(uninterrupted / "w.safetensors")


def test_a_checkpoint_of_other_options_is_not_used(frames, uninterrupted, tmp_path):
    other = OPTIONS.model_copy(update={"seed": 1, "epochs": 1})
    checkpoints = uninterrupted / "checkpoints"
    before = (checkpoints / "forceuq-small.pt").read_bytes()
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "forceuq-small.pt").write_bytes(before)
    training.train_small_orb(frames, tmp_path / "a.safetensors", tmp_path / "r.json", other, folder)
    training.train_small_orb(frames, tmp_path / "b.safetensors", tmp_path / "r.json", other, tmp_path / "fresh")
    assert file_digest(tmp_path / "a.safetensors") == file_digest(tmp_path / "b.safetensors")


def test_termination_leaves_no_half_written_file(frames, tmp_path):
    script = f"""
from pathlib import Path
from forceuq.backbones.small.options import Options
from forceuq.backbones.small.training import train_small_orb
folder = Path({str(tmp_path)!r})
options = Options(epochs=100000, batch_structures=8, threads=1)
train_small_orb(Path({str(frames)!r}), folder / "w.safetensors", folder / "r.json", options, folder / "c")
"""
    run = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    try:
        state = tmp_path / "c" / "forceuq-small.pt"
        deadline = time.monotonic() + 60
        while not state.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(run.pid, signal.SIGTERM)
        assert run.wait(20) != 0
    finally:
        run.kill()
    assert not (tmp_path / "w.safetensors").exists()
    assert len(torch.load(state, weights_only=True)["curve"]) >= 1


def test_rotated_batches_turn_vectors_and_targets_alike(frames):
    _, collate = orb._graph_builder(SETTINGS)
    some = training._frames(frames, "validation", SETTINGS)[:2]
    plain, target = training._batch(some, collate, None)
    turns = np.stack([np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])] * 2)
    turned, turned_target = training._batch(some, collate, turns)
    matrix = torch.from_numpy(turns[0]).float()
    torch.testing.assert_close(turned.edge_features["vectors"], plain.edge_features["vectors"] @ matrix.T)
    torch.testing.assert_close(turned.positions, plain.positions @ matrix.T)
    torch.testing.assert_close(turned_target, target @ matrix.T)
    # Graphs are prebuilt once: a batch must not turn them in place.
    again, _ = training._batch(some, collate, None)
    assert torch.equal(again.edge_features["vectors"], plain.edge_features["vectors"])
    alone = training._batch(some[:1], collate, None)[0].edge_features["vectors"].clone()
    training._batch(some[:1], collate, turns[:1])
    assert torch.equal(training._batch(some[:1], collate, None)[0].edge_features["vectors"], alone)


def test_no_frames_of_a_part_is_an_error(frames):
    with pytest.raises(FitError, match="no frames of part 'test'"):
        training._frames(frames, "test", SETTINGS)
