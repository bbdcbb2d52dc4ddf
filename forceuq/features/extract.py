"""From structures to the feature cache: one shard of one part, by one process with helpers."""

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forceuq.backbones import load_backbone_module
from forceuq.data.splits import read_part
from forceuq.data.structures import read_structures
from forceuq.errors import ConfigurationError, DataError
from forceuq.features.behind import Behind
from forceuq.features.cache import FeatureWriter
from forceuq.features.forward import Extraction, Forward
from forceuq.features.graphs import Batch, graph_builder
from forceuq.features.layout import FeatureMetadata, Precision
from forceuq.features.shards import atom_counts, check_shard, passes, row_group_atoms, shard_bounds
from forceuq.files import file_digest

_LOGGER = logging.getLogger(__name__)
# Atoms of a shard from which helpers win back the seconds that they take to start.
_WORKERS_PAY = 10_000


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
    shard: int = 0,
    shards: int = 1,
    precision: Precision = "float32",
    max_atoms_per_batch: int = 2048,
    max_edges_per_batch: int = 1_000_000,
    atoms_per_file: int = 200_000,
    atoms_per_row_group: int | None = None,
    workers: int = 1,
    device: str = "auto",
) -> Extraction:
    """Compute and cache the node features of one part of a data set, or of one shard of it.

    Features are the same whatever the number of shards and of workers.

    Args:
        structures: structures file.
        splits: splits file.
        part: the part.
        weights: the backbone's weights.
        kind: of backbone.
        options: settings of the backbone, as plain values.
        output: the cache's directory.
        dataset: the data set's name, for the metadata.
        shard: which shard, counted from 0.
        shards: how many the part is cut into; see ``forceuq.features.shards``.
        precision: of the features as stored.
        max_atoms_per_batch: atoms in a forward pass, at most (a larger structure goes alone).
        max_edges_per_batch: edges in a forward pass, at most (likewise).
        atoms_per_file: atoms in a Parquet file, at most.
        atoms_per_row_group: atoms in a row group, at most, within which a forward pass lies; None: what follows from
            the size of the part. To measure on a few structures what a large part takes.
        workers: processes that build graphs beside the model; 0: none, this one does it, as it does for few atoms.
        device: cpu, cuda, or auto.

    Raises:
        DataError: weights, structures or splits that cannot be used, features that are not finite, or a structure
            that does not fit into the device's memory.
        ConfigurationError: there is no such shard, or no GPU for ``device: cuda``.
    """
    import torch
    from tqdm import tqdm

    check_shard(shard, shards)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device: cuda, but torch finds no GPU here; use device: cpu")
    module = load_backbone_module(kind)
    settings = module.Options(**options)
    backbone = module.load(weights, settings, device)
    rows = read_part(splits, part)
    if not len(rows):
        raise DataError(f"has no structures of part '{part}'", file=splits)
    atoms = atom_counts(structures, rows)
    row_group = atoms_per_row_group or row_group_atoms(int(atoms.sum()))
    first, last = shard_bounds(atoms, shards)[shard : shard + 2]
    rows, atoms = rows[first:last], atoms[first:last]
    metadata = FeatureMetadata(
        width=backbone.node_dim,
        backbone=kind,
        backbone_version=backbone.version,
        weights_sha256=file_digest(weights),
        dataset=dataset,
        part=part,
        shard=shard,
        shards=shards,
        precision=precision,
    )
    _LOGGER.info("%s, shard %d of %d: %d structures on %s", part, shard, shards, len(rows), device)
    done = Extraction(device, max_atoms_per_batch)
    with (
        FeatureWriter(output, metadata, atoms_per_file, row_group) as writer,
        tqdm(total=len(rows), desc=part, unit="structure", mininterval=2) as progress,
        torch.inference_mode(),
        graph_builder(kind, settings, max_edges_per_batch, workers if atoms.sum() >= _WORKERS_PAY else 0) as builder,
        # A GPU is not kept waiting while features are written.
        Behind(partial(_write, writer, structures)) as writing,
    ):
        began = time.perf_counter()
        work = _batches(structures, rows, passes(atoms, row_group, max_atoms_per_batch), done)
        for batch, features, zbl in Forward(backbone, builder, device, done).all(work):
            entered = time.perf_counter()
            writing.call(batch, features, zbl)
            done.writing += time.perf_counter() - entered
            done.atoms += sum(len(structure) for _, structure in batch)
            progress.update(len(batch))
        entered = time.perf_counter()
        writing.wait()
        done.writing += time.perf_counter() - entered
        done.seconds = time.perf_counter() - began
    _LOGGER.info(
        "%d atoms in %.1f s: reading %.1f, waiting for graphs %.1f, model %.1f, writing %.1f; the bottleneck: %s",
        *(done.atoms, done.seconds, done.reading, done.graphs, done.model, done.writing, done.bottleneck),
    )
    return done


def _write(
    writer: FeatureWriter, structures: Path, batch: Batch, features: NDArray[np.float32], zbl: NDArray[np.float64]
) -> None:
    try:
        writer.add(
            np.repeat([row for row, _ in batch], [len(s) for _, s in batch]),
            np.concatenate([np.arange(len(s)) for _, s in batch]),
            np.concatenate([s.numbers for _, s in batch]),
            np.concatenate([s.forces for _, s in batch]),
            zbl,
            features,
        )
    except DataError as error:
        named = next((s.structure_id for row, s in batch if row == error.record), None)
        raise DataError(str(error), file=structures, record=named) from error


def _batches(
    structures: Path, rows: NDArray[np.int64], bounds: Sequence[tuple[int, int]], done: Extraction
) -> Iterator[Batch]:
    if not bounds:
        return
    stream = read_structures(structures, rows)
    for first, last in bounds:
        began = time.perf_counter()
        batch = list(itertools.islice(stream, last - first))
        done.reading += time.perf_counter() - began
        yield batch


def export_head(weights: Path, kind: str, options: dict[str, Any], output: Path) -> None:
    """Write a backbone's force head to a file of its own."""
    module = load_backbone_module(kind)
    module.load(weights, module.Options(**options)).head().save(output)
