"""The cache of atom features: what a backbone computes once, read many times.

The cache of one part of a data set is one directory or several: its shards, consecutive structures each. A
directory holds Parquet files, a row an atom, and a manifest, written last: a directory with a manifest is whole.
Features are one fixed-size binary column (little-endian float32, or float16 where asked for), several times faster
to read than a list of floats and viewed as an (n, D) array without a copy. A structure's atoms lie together, in
order, in one row group.
"""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from forceuq.errors import DataError
from forceuq.features.layout import (
    MANIFEST,
    ROW_GROUP_ATOMS,
    SCHEMA,
    VERSION,
    FeatureBlock,
    FeatureMetadata,
    cuts,
)
from forceuq.features.parquet_file import CacheFile
from forceuq.features.writer import FeatureWriter
from forceuq.files import file_digest, read_json

__all__ = ["FeatureBlock", "FeatureMetadata", "FeatureReader", "FeatureWriter"]

# pyarrow names few of its exceptions' classes: these are what its reader raises on a damaged file.
_DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class _File:
    path: Path
    part_index: int
    metadata: FeatureMetadata
    entry: dict[str, Any]


class FeatureReader:
    """Reads the caches of one or more parts, in the order given, in flat memory.

    Args:
        directories: caches whose features are of the same backbone, layer and width; of a part in shards all of
            them, in order.
        whole_parts: False takes any shards, each as a part of its own.

    Raises:
        DataError: a manifest that is missing or of another schema, caches of different backbones, a part of which
            a shard is missing.
    """

    def __init__(self, directories: Sequence[str | Path], whole_parts: bool = True) -> None:
        if not directories:
            raise DataError("no feature cache was given")
        self.directories = tuple(Path(directory) for directory in directories)
        self.n_atoms = 0
        self.n_structures = 0
        self._files: list[_File] = []
        self._groups: list[tuple[_File, int]] = []
        found: list[FeatureMetadata] = []
        index = -1
        for directory in self.directories:
            manifest = _read_manifest(directory)
            metadata = FeatureMetadata(**manifest["metadata"])
            if whole_parts:
                _check_follows(metadata, found[-1] if found else None, directory)
            found.append(metadata)
            if metadata.shard == 0 or not whole_parts:
                index += 1
            self.n_atoms += manifest["atoms"]
            self.n_structures += manifest["structures"]
            for entry in manifest["files"]:
                file = _File(directory / entry["file"], index, metadata, entry)
                self._files.append(file)
                self._groups += [(file, group) for group in range(len(entry["row_groups"]))]
        last = found[-1]
        if whole_parts and last.shard != last.shards - 1:
            raise DataError(f"shard {last.shard} of {last.shards} is the last one given", file=self.directories[-1])
        common = _without_place(found[0])
        for directory, metadata in zip(self.directories, found, strict=True):
            if _without_place(metadata) != common:
                raise DataError(f"made as {metadata}, the first cache as {found[0]}: they do not mix", file=directory)
        parts = {(metadata.dataset, metadata.part) for metadata in found}
        self.metadata = replace(found[0], shard=0, shards=1) if index == 0 and len(parts) == 1 else common

    @property
    def n_row_groups(self) -> int:
        """The number of row groups, the unit in which the cache can be read out of order."""
        return len(self._groups)

    @property
    def largest_row_group(self) -> int:
        """Atoms in a row group, at most."""
        return max((file.entry["largest_row_group"] for file in self._files), default=0)

    def blocks(self, max_atoms: int = ROW_GROUP_ATOMS, order: Sequence[int] | None = None) -> Iterator[FeatureBlock]:
        """Yield every atom once, in blocks of whole structures of at most ``max_atoms`` (or one structure).

        The blocks of a part are the same however many shards it is in.

        Args:
            max_atoms: atoms in a block.
            order: which row groups, and in which order; all in the files' order by default.

        Raises:
            DataError: a file that is missing, truncated or altered.
        """
        with contextlib.ExitStack() as opened:
            current: _File | None = None
            groups = self._groups if order is None else [self._groups[index] for index in order]
            for (file, group), following in itertools.zip_longest(groups, groups[1:]):
                with _damage_named(file.path):
                    if file is not current:
                        opened.close()
                        current = file
                        parquet = opened.enter_context(CacheFile(file.path, file.metadata, file.entry, file.part_index))
                    then = following[1] if following and following[0] is file else None
                    whole = parquet.block(group, then)
                if len(whole) <= max_atoms:
                    yield whole
                    continue
                offsets = cuts(whole.starts, max_atoms)
                for start, stop in itertools.pairwise(offsets):
                    yield whole.rows(start, stop)

    def digest(self) -> str:
        """Return a digest of the content of all caches, from their manifests."""
        files = [[file.part_index, file.entry["sha256"]] for file in self._files]
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()

    def verify(self) -> None:
        """Compare every file's sha256 with the manifest's (``blocks`` checks faster digests of what it reads)."""
        for file in self._files:
            if not file.path.is_file() or file_digest(file.path) != file.entry["sha256"]:
                raise DataError("missing or altered since it was written: remove the cache", file=file.path)


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise DataError(f"truncated or altered ({error}): remove the cache and make it again", file=path) from error


def _without_place(metadata: FeatureMetadata) -> FeatureMetadata:
    return replace(metadata, dataset="", part="", shard=0, shards=1)


def _check_follows(metadata: FeatureMetadata, before: FeatureMetadata | None, directory: Path) -> None:
    """Raise DataError unless this is the next shard of a part, or the first of one where the one before is whole."""
    expected = 0 if before is None or before.shard == before.shards - 1 else before.shard + 1
    other = before is not None and expected and replace(metadata, shard=before.shard) != before
    if metadata.shard != expected or other:
        raise DataError(
            f"is shard {metadata.shard} of {metadata.shards} of part '{metadata.part}' of '{metadata.dataset}' where"
            f" shard {expected}{'' if before is None else f' after {before.shard} of {before.shards}'} is needed: give"
            " all shards of a part, in order",
            file=directory,
        )


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    if not path.is_file():
        raise DataError("no manifest: the cache was not finished", file=directory)
    try:
        manifest = read_json(path)
        found = manifest["schema"], manifest["version"]
        known = {field.name for field in fields(FeatureMetadata)}
        whole = set(manifest["metadata"]) == known and {"atoms", "structures", "files"} <= set(manifest)
    except _DAMAGE as error:
        raise DataError(f"not a manifest of features ({error})", file=path) from error
    if found != (SCHEMA, VERSION) or not whole:
        raise DataError(f"schema {found}, this reads {(SCHEMA, VERSION)}: make the cache again", file=path)
    return dict(manifest)
