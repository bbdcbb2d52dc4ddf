"""From structures to the feature cache: graphs built beside the model, batches bounded by atoms."""

import contextlib
import logging
import multiprocessing
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from forceuq.backbones import BackboneModule, load_backbone_module
from forceuq.data.splits import read_part
from forceuq.data.structures import Structure, read_structures
from forceuq.errors import DataError
from forceuq.features.cache import FeatureWriter
from forceuq.features.layout import FeatureMetadata
from forceuq.files import file_digest

_LOGGER = logging.getLogger(__name__)
Batch = list[tuple[int, Structure]]


def batches(structures: Iterator[tuple[int, Structure]], max_atoms: int) -> Iterator[Batch]:
    """Yield consecutive structures whose atoms together are at most ``max_atoms`` (or a single structure)."""
    batch: Batch = []
    atoms = 0
    for row, structure in structures:
        if batch and atoms + len(structure) > max_atoms:
            yield batch
            batch, atoms = [], 0
        batch.append((row, structure))
        atoms += len(structure)
    if batch:
        yield batch


def extract_features(
    structures: Path,
    splits: Path,
    part: str,
    weights: Path,
    kind: str,
    options: dict[str, Any],
    output: Path,
    *,
    dataset: str = "",
    max_atoms_per_batch: int = 2048,
    atoms_per_shard: int = 200_000,
    workers: int = 1,
    device: str = "auto",
) -> tuple[int, float]:
    """Compute and cache the node features of one part of a data set.

    Args:
        structures: structures file.
        splits: splits file.
        part: the part.
        weights: the backbone's weights.
        kind: of backbone.
        options: settings of the backbone, as plain values.
        output: the cache's directory.
        dataset: the data set's name, for the metadata.
        max_atoms_per_batch: atoms in a forward pass, at most (a larger structure goes alone).
        atoms_per_shard: atoms in a Parquet shard, at most.
        workers: processes that build graphs beside the model; 0: none, this one does it.
        device: cpu, cuda, or auto.

    Returns:
        The number of atoms, and the seconds that they took once model and workers were ready.

    Raises:
        DataError: weights, structures or splits that cannot be used, or features that are not finite.
    """
    import torch
    from tqdm import tqdm

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    module = load_backbone_module(kind)
    settings = module.Options(**options)
    backbone = module.load(weights, settings, device)
    rows = read_part(splits, part)
    if not len(rows):
        raise DataError(f"has no structures of part '{part}'", file=splits)
    metadata = FeatureMetadata(
        width=backbone.node_dim,
        backbone=kind,
        backbone_version=backbone.version,
        weights_sha256=file_digest(weights),
        dataset=dataset,
        part=part,
    )
    _LOGGER.info("%s: %d structures on %s", part, len(rows), device)
    atoms = 0
    work = batches(read_structures(structures, rows), max_atoms_per_batch)
    with (
        FeatureWriter(output, metadata, atoms_per_shard) as writer,
        tqdm(total=len(rows), desc=part, unit="structure", mininterval=2) as progress,
        torch.inference_mode(),
        _graph_builders(module, settings, workers) as pool,
    ):
        began = time.perf_counter()
        for batch, graph in _with_graphs(work, module, settings, pool, workers):
            try:
                features = backbone.node_features(graph).float().cpu().numpy()
                zbl = backbone.zbl(graph).double().cpu().numpy()
                writer.add(
                    np.repeat([row for row, _ in batch], [len(s) for _, s in batch]),
                    np.concatenate([np.arange(len(s)) for _, s in batch]),
                    np.concatenate([s.numbers for _, s in batch]),
                    np.concatenate([s.forces for _, s in batch]),
                    zbl,
                    features,
                )
            except DataError as error:
                first, last = batch[0][1].structure_id, batch[-1][1].structure_id
                raise DataError(f"in the batch from {first} to {last}: {error}", file=structures) from error
            atoms += sum(len(structure) for _, structure in batch)
            progress.update(len(batch))
        seconds = time.perf_counter() - began
    return atoms, seconds


def export_head(weights: Path, kind: str, options: dict[str, Any], output: Path) -> None:
    """Write a backbone's force head to a file of its own."""
    module = load_backbone_module(kind)
    module.load(weights, module.Options(**options)).head().save(output)


def _build(kind: str, settings: Any, structures: list[Structure]) -> Any:
    import torch

    torch.set_num_threads(1)
    return load_backbone_module(kind).graphs(structures, settings)


def _kind_of(module: BackboneModule) -> str:
    return str(module.__name__.rpartition(".")[2])  # type: ignore[attr-defined]


@contextlib.contextmanager
def _graph_builders(module: BackboneModule, settings: Any, workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Start the processes that build graphs, and wait until they can; none of them for ``workers`` = 0."""
    if workers == 0:
        yield None
        return
    # Spawned, since a fork of a process that runs torch's threads or CUDA may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        # A molecule of hydrogen: what builds graphs is imported when the first one is built.
        positions = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.74]])
        first = Structure("", "", np.array([1, 1]), positions, np.zeros((3, 3)), False, None, np.zeros((2, 3)), None)
        for ready in [pool.submit(_build, _kind_of(module), settings, [first]) for _ in range(workers)]:
            ready.result()
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _with_graphs(
    work: Iterator[Batch], module: BackboneModule, settings: Any, pool: ProcessPoolExecutor | None, workers: int
) -> Iterator[tuple[Batch, Any]]:
    """Yield batches with their graphs, in order; at most two batches a worker wait ahead of the model."""
    if pool is None:
        for batch in work:
            yield batch, module.graphs([s for _, s in batch], settings)
        return
    kind = _kind_of(module)
    waiting: deque[tuple[Batch, Future[Any]]] = deque()
    for batch in work:
        waiting.append((batch, pool.submit(_build, kind, settings, [s for _, s in batch])))
        if len(waiting) > 2 * workers:
            ready, future = waiting.popleft()
            yield ready, future.result()
    while waiting:
        ready, future = waiting.popleft()
        yield ready, future.result()
