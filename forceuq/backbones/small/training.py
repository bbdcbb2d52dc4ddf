"""Training of forceuq-small, an Orb of the published classes that is small enough for two cores."""

import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from forceuq.backbones import orb
from forceuq.backbones.small.options import Options
from forceuq.data.structures import read_structures
from forceuq.errors import FitError
from forceuq.files import file_digest, whole_file, write_json

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Frame:
    """A prebuilt graph, the force that the head must give (without ZBL), and what it is."""

    graph: Any
    target: Tensor
    kind: str


def _frames(path: Path, part: str, options: orb.Options) -> list[_Frame]:
    backbone = orb.OrbBackbone(orb._architecture(options.architecture))
    frames = []
    for _, structure in read_structures(path):
        if not structure.structure_id.startswith(f"{part}/"):
            continue
        graph = orb.graphs([structure], options)
        with torch.no_grad():
            target = torch.from_numpy(structure.forces) - backbone.zbl(graph).double()
        frames.append(_Frame(graph, target.float(), structure.structure_id.split("/")[1]))
    if not frames:
        raise FitError(f"{path}: has no frames of part '{part}'")
    return frames


def _batch(frames: Sequence[_Frame], collate: Any, rotations: np.ndarray[Any, Any] | None) -> tuple[Any, Tensor]:
    """Return graphs and targets, each frame turned by its rotation: Orb is not equivariant by construction."""
    batch = collate([frame.graph for frame in frames])
    target = torch.cat([frame.target for frame in frames])
    if rotations is None:
        return batch, target
    turn = torch.from_numpy(rotations.astype(np.float32))
    by_atom = turn.repeat_interleave(batch.n_node, dim=0)
    by_edge = turn.repeat_interleave(batch.n_edge, dim=0)
    batch.edge_features["vectors"] = torch.einsum("nij,nj->ni", by_edge, batch.edge_features["vectors"])
    batch.node_features["positions"] = torch.einsum("nij,nj->ni", by_atom, batch.node_features["positions"])
    return batch, torch.einsum("nij,nj->ni", by_atom, target)


def _output(model: Any, batch: Any) -> Tensor:
    """Return the head's normalised output."""
    head = model.heads["forces"]
    output: Tensor = head(model.model(batch)["node_features"], batch)
    return output if orb.output_is_normalised(head) else output / head.normalizer.bn.running_var.sqrt()


def _order(n: int, options: Options, epoch: int) -> Iterator[tuple[list[int], np.ndarray[Any, Any]]]:
    """Yield the batches of an epoch with their rotations: a function of seed and epoch alone, so resuming is exact."""
    random = np.random.default_rng([options.seed, epoch])
    order = random.permutation(n)
    rotations = Rotation.random(n, random_state=random).as_matrix()
    for start in range(0, n, options.batch_structures):
        chosen = order[start : start + options.batch_structures]
        yield chosen.tolist(), rotations[chosen]


def _rate(step: int, steps: int, options: Options) -> float:
    rise = max(1, int(options.warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def held_out_errors(model: Any, frames: Sequence[_Frame], collate: Any) -> dict[str, dict[str, float]]:
    """Return by kind of frame the MAE of the force components and the mean absolute component, eV/Å."""
    sums: dict[str, list[float]] = {}
    model.eval()
    with torch.no_grad():
        for frame in frames:
            batch, target = _batch([frame], collate, None)
            error = model.heads["forces"].predict(model.model(batch)["node_features"], batch) - target
            total = sums.setdefault(frame.kind, [0.0, 0.0, 0.0])
            for index, value in enumerate((error.abs().sum(), target.abs().sum(), target.numel())):
                total[index] += float(value)
    return {kind: {"mae": s[0] / s[2], "mean_absolute_force": s[1] / s[2]} for kind, s in sorted(sums.items())}


def train_small_orb(frames: Path, weights: Path, record: Path, options: Options, checkpoints: Path) -> None:
    """Train forceuq-small on labelled frames; continues from the last epoch's checkpoint when there is one.

    Args:
        frames: what ``generate_training_frames`` wrote.
        weights: safetensors to write.
        record: JSON to write: options, versions, learning curve, held-out errors, seconds, digests.
        options: optimiser and seed.
        checkpoints: folder of the checkpoint; a checkpoint of other options or frames is not used.

    Raises:
        FitError: no frames, or a loss that is not finite (naming epoch and batch).
    """
    from safetensors.torch import save_file
    from tqdm import trange

    torch.set_num_threads(options.threads)
    settings = orb.Options(architecture="forceuq-small")
    _, collate = orb._graph_builder(settings)
    train = _frames(frames, "train", settings)
    validation = _frames(frames, "validation", settings)
    torch.manual_seed(options.seed)
    model = orb._architecture("forceuq-small")
    head = model.heads["forces"]
    head.normalizer.online = False
    head.normalizer.bn.running_mean.zero_()
    head.normalizer.bn.running_var.fill_(float(torch.cat([f.target for f in train]).double().square().mean()))
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    identity = {"options": options.model_dump(mode="json"), "frames_sha256": file_digest(frames)}
    curve: list[dict[str, Any]] = []
    seconds = 0.0
    state_file = checkpoints / "forceuq-small.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        if json.loads(state["identity"]) == identity:
            model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            average, curve, seconds = state["average"], state["curve"], state["seconds"]
            _LOGGER.info("continuing after epoch %d", len(curve))
    per_epoch = math.ceil(len(train) / options.batch_structures)
    steps = per_epoch * options.epochs
    for epoch in trange(len(curve), options.epochs, initial=len(curve), total=options.epochs, desc="forceuq-small"):
        started = time.perf_counter()
        loss_sum = _epoch(model, optimiser, average, train, collate, options, epoch, steps)
        seconds += time.perf_counter() - started
        curve.append({"epoch": epoch, "loss": loss_sum / per_epoch})
        _LOGGER.info("epoch %d: loss %.4f, %.0f s", epoch, curve[-1]["loss"], seconds)
        checkpoints.mkdir(parents=True, exist_ok=True)
        with whole_file(state_file) as temporary:
            state = {"identity": json.dumps(identity), "model": model.state_dict(), "average": average}
            state |= {"optimiser": optimiser.state_dict(), "curve": curve, "seconds": seconds}
            torch.save(state, temporary)
    model.load_state_dict(average)
    with whole_file(weights) as temporary:
        save_file({name: value.contiguous() for name, value in average.items()}, temporary)
    write_json(
        record,
        {
            **identity,
            "weights_sha256": file_digest(weights),
            "parameters": sum(p.numel() for p in model.parameters()),
            "frames": {"train": len(train), "validation": len(validation)},
            "held_out": held_out_errors(model, validation, collate),
            "curve": curve,
            "training_seconds": round(seconds, 1),
            "versions": {"torch": torch.__version__, "orb-models": orb.OrbBackbone(model).version},
        },
    )


def _epoch(
    model: Any,
    optimiser: torch.optim.Optimizer,
    average: dict[str, Tensor],
    train: Sequence[_Frame],
    collate: Any,
    options: Options,
    epoch: int,
    steps: int,
) -> float:
    """Train for one epoch, in place, and return the sum of the batches' losses."""
    model.train()
    head = model.heads["forces"]
    scale = head.normalizer.bn.running_var.sqrt()
    total = 0.0
    batches = list(_order(len(train), options, epoch))
    for index, (chosen, rotations) in enumerate(batches):
        step = epoch * len(batches) + index
        for group in optimiser.param_groups:
            group["lr"] = options.learning_rate * _rate(step, steps, options)
        batch, target = _batch([train[i] for i in chosen], collate, rotations)
        # The norm of each atom's error: rotation-invariant, and less ruled by outliers than its square.
        loss = (_output(model, batch) - target / scale).norm(dim=1).mean()
        if not torch.isfinite(loss):
            raise FitError(f"the loss is {float(loss)} in epoch {epoch}, batch {index}; lower the learning rate")
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        optimiser.step()
        total += float(loss.detach())
        # A young average must forget the first weights sooner.
        decay = min(options.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    average[name].lerp_(value, 1 - decay)
    return total
