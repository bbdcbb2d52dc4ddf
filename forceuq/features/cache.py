"""The cache of atom features: what a backbone computes once, read many times.

The cache of one part of a dataset is a directory of Parquet shards, a row an atom, and a manifest, written
last: a directory with a manifest is whole. Features are one fixed-size binary column (little-endian float32),
several times faster to read than a list of floats and viewed as an (n, D) array without a copy. A structure's
atoms lie together, in order, in one row group.
"""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from forceuq.errors import DataError
from forceuq.features.layout import (
    SCHEMA,
    VERSION,
    FeatureBlock,
    FeatureMetadata,
    arrow_schema,
    cuts,
    footer_digest,
)
from forceuq.files import file_digest, read_json, whole_file, write_json

__all__ = ["FeatureBlock", "FeatureMetadata", "FeatureReader", "FeatureWriter"]

MANIFEST = "manifest.json"
ROW_GROUP_ATOMS = 16_384

# pyarrow names few of its exceptions' classes: these are what its reader raises on a damaged file.
_DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)


class FeatureWriter:
    """Writes one part's cache; a context manager. The manifest is written only when its block ends well.

    Args:
        directory: where the cache will be; shards of an earlier attempt there are removed.
        metadata: what the cache holds.
        atoms_per_shard: a shard is closed at the last structure boundary before this many atoms.
    """

    def __init__(self, directory: str | Path, metadata: FeatureMetadata, atoms_per_shard: int = 200_000) -> None:
        self._directory = Path(directory)
        self._metadata = metadata
        self._atoms_per_shard = atoms_per_shard
        self._schema = arrow_schema(metadata)
        self._shards: list[dict[str, Any]] = []
        self._stack = contextlib.ExitStack()
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[FeatureBlock] = []
        self._pending_atoms = 0
        self._shard_atoms = 0
        self._shard_structures = 0
        self._shard_groups = 0
        self._last_structure = -1

    def __enter__(self) -> "FeatureWriter":
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / MANIFEST).unlink(missing_ok=True)
        for stale in [
            *self._directory.glob("shard-*.parquet"),
            *self._directory.glob(".shard-*.part.parquet"),
        ]:
            stale.unlink()
        return self

    def add(
        self,
        structure_rows: NDArray[Any],
        atoms: NDArray[Any],
        numbers: NDArray[Any],
        forces: NDArray[Any],
        zbl: NDArray[Any],
        features: NDArray[Any],
    ) -> None:
        """Add the atoms of one or more whole structures, in increasing order of their rows.

        Args:
            structure_rows: (n,) for each atom the row of its structure in the structures file.
            atoms: (n,) 0, 1, ... within each structure.
            numbers: (n,) atomic numbers.
            forces: (n, 3) reference forces, eV/Å.
            zbl: (n, 3) what the backbone adds after its head, eV/Å.
            features: (n, D).

        Raises:
            DataError: wrong shapes, a structure out of order or in pieces, a value that is not finite.
        """
        structure = np.array(structure_rows, dtype=np.int64)
        n = len(structure)
        if n == 0:
            return
        block = FeatureBlock(
            structure,
            np.array(atoms, dtype=np.int32),
            np.array(numbers, dtype=np.int16),
            np.array(forces, dtype=np.float64),
            np.array(zbl, dtype=np.float64),
            np.array(features, dtype="<f4", order="C"),
        )
        self._check(block)
        starts = block.starts
        self._last_structure = int(structure[-1])
        for start, stop in itertools.pairwise(starts):
            # Cut by structure, not by call, so that the files do not depend on the batches they came in.
            if self._pending_atoms and self._pending_atoms + stop - start > ROW_GROUP_ATOMS:
                self._flush()
            if self._shard_atoms and (self._shard_atoms + self._pending_atoms + stop - start > self._atoms_per_shard):
                self._flush()
                self._close_shard()
            self._pending.append(block.rows(int(start), int(stop)))
            self._pending_atoms += int(stop - start)

    def _check(self, block: FeatureBlock) -> None:
        n, width = len(block), self._metadata.width
        shapes = {
            "atoms": (block.atom.shape, (n,)),
            "numbers": (block.number.shape, (n,)),
            "forces": (block.force.shape, (n, 3)),
            "zbl": (block.zbl.shape, (n, 3)),
            "features": (block.features.shape, (n, width)),
        }
        for name, (found, expected) in shapes.items():
            if found != expected:
                raise DataError(f"{name} have shape {found}, expected {expected}", file=self._directory)
        starts = block.starts
        rows = block.structure[starts[:-1]]
        if rows[0] <= self._last_structure or np.any(np.diff(rows) <= 0):
            raise DataError(
                f"structures must come whole and in increasing order of rows: {rows[0]} follows"
                f" {self._last_structure}, or the rows of one call are out of order",
                file=self._directory,
                record=int(rows[0]),
            )
        within = np.arange(n) - np.repeat(starts[:-1], np.diff(starts))
        for name, bad in (
            ("atom indices other than 0, 1, ...", block.atom != within),
            ("a force that is not finite", ~np.isfinite(block.force).all(axis=1)),
            ("a ZBL force that is not finite", ~np.isfinite(block.zbl).all(axis=1)),
            ("a feature that is not finite", ~np.isfinite(block.features).all(axis=1)),
        ):
            if bad.any():
                record = int(block.structure[np.argmax(bad)])
                raise DataError(f"the structure has {name}", file=self._directory, record=record)

    def _shard_path(self) -> Path:
        return self._directory / f"shard-{len(self._shards):05d}.parquet"

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._writer is None:
            temporary = self._stack.enter_context(whole_file(self._shard_path()))
            # Checksums a page: what is altered later is refused when read, at no cost worth naming.
            self._writer = self._stack.enter_context(
                pq.ParquetWriter(
                    temporary,
                    self._schema,
                    compression="none",
                    use_dictionary=False,
                    write_statistics=False,
                    write_page_checksum=True,
                )
            )
        columns = {
            name: np.concatenate([getattr(block, name) for block in self._pending])
            for name in ("structure", "atom", "number", "force", "zbl", "features")
        }
        n, width = columns["features"].shape
        arrays = [pa.array(columns[name]) for name in ("structure", "atom", "number")]
        arrays += [
            pa.FixedSizeListArray.from_arrays(pa.array(columns[name].ravel()), type=self._schema.field(name).type)
            for name in ("force", "zbl")
        ]
        arrays.append(pa.Array.from_buffers(pa.binary(4 * width), n, [None, pa.py_buffer(columns["features"].data)]))
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=n)
        self._shard_atoms += n
        self._shard_structures += len(self._pending)
        self._shard_groups += 1
        self._pending = []
        self._pending_atoms = 0

    def _close_shard(self) -> None:
        if self._writer is None:
            return
        path = self._shard_path()
        self._stack.close()
        self._writer = None
        self._shards.append(
            {
                "file": path.name,
                "atoms": self._shard_atoms,
                "structures": self._shard_structures,
                "row_groups": self._shard_groups,
                "bytes": path.stat().st_size,
                "sha256": file_digest(path),
                "footer_sha256": footer_digest(path),
            }
        )
        self._shard_atoms = self._shard_structures = self._shard_groups = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        self._flush()
        self._close_shard()
        write_json(
            self._directory / MANIFEST,
            {
                "schema": SCHEMA,
                "version": VERSION,
                "metadata": asdict(self._metadata),
                "atoms": sum(shard["atoms"] for shard in self._shards),
                "structures": sum(shard["structures"] for shard in self._shards),
                "shards": self._shards,
            },
        )


@dataclass(frozen=True)
class _Shard:
    path: Path
    part_index: int
    entry: dict[str, Any]


class FeatureReader:
    """Reads the caches of one or more parts, in the order given, in flat memory.

    Args:
        directories: caches whose features are of the same backbone, layer and width.

    Raises:
        DataError: a manifest that is missing or of another schema, caches of different backbones.
    """

    def __init__(self, directories: Sequence[str | Path]) -> None:
        if not directories:
            raise DataError("no feature cache was given")
        self.directories = tuple(Path(directory) for directory in directories)
        self.n_atoms = 0
        self.n_structures = 0
        self._shards: list[_Shard] = []
        self._groups: list[tuple[_Shard, int]] = []
        parts: list[FeatureMetadata] = []
        for index, directory in enumerate(self.directories):
            manifest = _read_manifest(directory)
            parts.append(FeatureMetadata(**manifest["metadata"]))
            self.n_atoms += manifest["atoms"]
            self.n_structures += manifest["structures"]
            for entry in manifest["shards"]:
                shard = _Shard(directory / entry["file"], index, entry)
                self._shards.append(shard)
                self._groups += [(shard, group) for group in range(entry["row_groups"])]
        common = replace(parts[0], dataset="", part="")
        for directory, part in zip(self.directories, parts, strict=True):
            if replace(part, dataset="", part="") != common:
                raise DataError(f"made as {part}, the first cache as {parts[0]}: they do not mix", file=directory)
        self.metadata = parts[0] if len(parts) == 1 else common
        self.part_names = tuple(part.part for part in parts)

    @property
    def n_row_groups(self) -> int:
        """The number of row groups, the unit in which the cache can be read out of order."""
        return len(self._groups)

    def blocks(self, max_atoms: int = ROW_GROUP_ATOMS, order: Sequence[int] | None = None) -> Iterator[FeatureBlock]:
        """Yield every atom once, in blocks of whole structures of at most ``max_atoms`` (or one structure).

        Args:
            max_atoms: atoms in a block.
            order: which row groups, and in which order; all in the file's order by default.

        Raises:
            DataError: a shard that is missing, truncated or altered.
        """
        with contextlib.ExitStack() as opened:
            current: _Shard | None = None
            for index in range(len(self._groups)) if order is None else order:
                shard, group = self._groups[index]
                with _damage_named(shard.path):
                    if shard is not current:
                        opened.close()
                        current = shard
                        file = opened.enter_context(_open_shard(shard, self.metadata))
                    whole = _block(file.read_row_group(group, use_threads=False), shard.part_index)
                if len(whole) <= max_atoms:
                    yield whole
                    continue
                offsets = cuts(whole.starts, max_atoms)
                for start, stop in itertools.pairwise(offsets):
                    yield whole.rows(start, stop)

    def digest(self) -> str:
        """Return a digest of the content of all caches, from their manifests."""
        shards = [[shard.part_index, shard.entry["sha256"]] for shard in self._shards]
        return hashlib.sha256(json.dumps(shards).encode()).hexdigest()

    def verify(self) -> None:
        """Compare every shard's sha256 with the manifest's (``blocks`` checks sizes and page checksums)."""
        for shard in self._shards:
            if not shard.path.is_file() or file_digest(shard.path) != shard.entry["sha256"]:
                raise DataError("missing or altered since it was written: remove the cache", file=shard.path)


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise DataError(f"truncated or altered ({error}): remove the cache and make it again", file=path) from error


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    if not path.is_file():
        raise DataError("no manifest: the cache was not finished", file=directory)
    try:
        manifest = read_json(path)
        found = manifest["schema"], manifest["version"]
        known = {field.name for field in fields(FeatureMetadata)}
        whole = set(manifest["metadata"]) == known and {"atoms", "structures", "shards"} <= set(manifest)
    except _DAMAGE as error:
        raise DataError(f"not a manifest of features ({error})", file=path) from error
    if found != (SCHEMA, VERSION) or not whole:
        raise DataError(f"schema {found}, this reads {(SCHEMA, VERSION)}: make the cache again", file=path)
    return dict(manifest)


def _open_shard(shard: _Shard, metadata: FeatureMetadata) -> pq.ParquetFile:
    size = shard.path.stat().st_size
    if size != shard.entry["bytes"]:
        raise ValueError(f"{size} bytes, written with {shard.entry['bytes']}")
    if footer_digest(shard.path) != shard.entry["footer_sha256"]:
        raise ValueError("its footer is not the one written")
    file = pq.ParquetFile(shard.path, memory_map=True, page_checksum_verification=True)
    header = json.loads((file.schema_arrow.metadata or {}).get(b"forceuq", b"{}"))
    if (header.get("schema"), header.get("version"), header.get("width")) != (
        SCHEMA,
        VERSION,
        metadata.width,
    ):
        raise ValueError(f"its header says {header}")
    found = file.metadata.num_rows, file.num_row_groups
    if found != (shard.entry["atoms"], shard.entry["row_groups"]):
        raise ValueError(f"{found} atoms and row groups, not those of the manifest")
    return file


def _block(table: pa.Table, part_index: int) -> FeatureBlock:
    column = {name: table.column(name).combine_chunks() for name in table.column_names}
    # combine_chunks copies only where a row group came in several chunks.
    values = {name: array.chunk(0) if isinstance(array, pa.ChunkedArray) else array for name, array in column.items()}
    n, raw = table.num_rows, values["features"]
    width = raw.type.byte_width // 4
    features = np.frombuffer(raw.buffers()[1], dtype="<f4", count=n * width, offset=4 * width * raw.offset)
    return FeatureBlock(
        values["structure"].to_numpy(),
        values["atom"].to_numpy(),
        values["number"].to_numpy(),
        values["force"].flatten().to_numpy().reshape(n, 3),
        values["zbl"].flatten().to_numpy().reshape(n, 3),
        features.reshape(n, width),
        part_index,
    )
