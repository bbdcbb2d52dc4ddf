"""The statistics of cached features under a head: in threads, or shard by shard and merged."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from forceuq.backbones.head import ForceHead
from forceuq.bll.batches import check_width
from forceuq.bll.statistics import SufficientStatistics, accumulate, merged
from forceuq.errors import DataError
from forceuq.features.cache import FeatureReader

# Runs of row groups a thread: enough that none waits long for the last.
_RUNS = 4


def threads_given() -> int:
    """Return the number of threads that linear algebra has been given in this process (OMP_NUM_THREADS)."""
    return max((int(library["num_threads"]) for library in threadpool_info()), default=1)


def summarise(reader: FeatureReader, head: ForceHead, threads: int | None = None) -> SufficientStatistics:
    """Return the statistics of a head's features, targets being forces less what the backbone adds after its head.

    Each thread reads, projects and multiplies row groups of its own, with linear algebra in that thread alone:
    products of this shape gain little from threads, and the result is the same to the last bit for any number.

    Args:
        reader: node features.
        head: its hidden layers make the features.
        threads: None: as many as linear algebra has been given.

    Raises:
        DataError: a cache that is damaged, or of another width than the head takes.
        FitError: a feature that is not finite.
    """
    check_width((reader,), head)
    width, targets = len(head.weights[-1][1]), reader.metadata.targets

    def of(groups: NDArray[np.int64]) -> SufficientStatistics:
        blocks = reader.blocks(order=groups.tolist())
        return accumulate(((head.penultimate(b.features), b.force - b.zbl) for b in blocks), width, targets)

    threads = threads_given() if threads is None else threads
    runs = np.array_split(np.arange(reader.n_row_groups), min(reader.n_row_groups, _RUNS * threads) or 1)
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        return merged(pool.map(of, runs))


def summarise_shard(features: Path, head: Path, output: Path) -> None:
    """Write the statistics of one shard's features, with what they are of.

    Args:
        features: one directory of a cache.
        head: the file of a head.
        output: a safetensors file.
    """
    reader = FeatureReader([features], whole_parts=False)
    summarise(reader, ForceHead.load(head)).save(output, _digest(reader, head))


def merge_shards(files: Sequence[Path], features: Sequence[Path], head: Path) -> SufficientStatistics:
    """Return the statistics of a cache from those of its shards.

    Args:
        files: what ``summarise_shard`` wrote, for each of ``features``.
        features: all directories of the cache.
        head: the file of the head.

    Raises:
        DataError: a file that is damaged, or of other features or another head, by its name.
    """

    def checked(file: Path, directory: Path) -> SufficientStatistics:
        expected = _digest(FeatureReader([directory], whole_parts=False), head)
        return SufficientStatistics.load(file, expected)

    if len(files) != len(features):
        raise DataError(f"statistics of {len(files)} shards, features of {len(features)}", file=features[0])
    return merged(checked(file, directory) for file, directory in zip(files, features, strict=True))


def _digest(reader: FeatureReader, head: Path) -> str:
    return hashlib.sha256(reader.digest().encode() + head.read_bytes()).hexdigest()
