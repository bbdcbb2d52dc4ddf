"""One Parquet file of a feature cache, of which row groups are mapped into memory.

Every byte is compared with what was written before it is used: the footer's digest when the file is opened, a row
group's when that is read. Arrow's own checksums of pages take several times longer than all else of reading. Features
are a view of the file, from its last column, of which a row group has one page; a view need not be aligned.
"""

import hashlib
import itertools
import json
import mmap
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from forceuq.features.layout import (
    PAGE_BYTES,
    ROW_GROUP_ATOMS,
    SCHEMA,
    VERSION,
    FeatureBlock,
    FeatureMetadata,
    storage_type,
)
from forceuq.files import file_digest

_FEATURES = "features"
# A page's header takes some 30 bytes; one of which more is left holds something that is not known here.
_LONGEST_HEADER = 64
# Linux fetches no more at a request than it reads ahead, often some MiB; what is beyond that would be forgotten.
_FETCHED = 2**20


class CacheFile:
    """A file that is open for reading; a context manager.

    Args:
        path: the file.
        metadata: of the cache.
        entry: what the manifest says of the file.
        part_index: of the blocks.

    Raises:
        ValueError: the file is not the one that was written.
        OSError, pyarrow.ArrowException: it cannot be read.
    """

    def __init__(self, path: Path, metadata: FeatureMetadata, entry: dict[str, Any], part_index: int) -> None:
        self._metadata, self._entry, self._part_index = metadata, entry, part_index
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise ValueError(f"{size} bytes, written with {entry['bytes']}")
        if footer_digest(path) != entry["footer_sha256"]:
            raise ValueError("its footer is not the one written")
        self._path = path
        self._parquet = pq.ParquetFile(path, memory_map=True)
        header = json.loads((self._parquet.schema_arrow.metadata or {}).get(b"forceuq", b"{}"))
        if (header.get("schema"), header.get("version"), header.get("width")) != (SCHEMA, VERSION, metadata.width):
            raise ValueError(f"its header says {header}")
        found = self._parquet.metadata.num_rows, self._parquet.num_row_groups
        if found != (entry["atoms"], len(entry["row_groups"])):
            raise ValueError(f"{found} atoms and row groups, not those of the manifest")
        self._spans = _spans(self._parquet.metadata, size)

    def __enter__(self) -> "CacheFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parquet.close()

    def block(self, group: int, then: int | None = None) -> FeatureBlock:
        """Return a row group's atoms.

        Args:
            group: which.
            then: the one that will be read next, which the system is asked to fetch meanwhile.

        Raises:
            ValueError: it is not as it was written.
        """
        if then is not None:
            _expect(self._path, *self._spans[then])
        mapped = _mapped(self._path, *self._spans[group])
        if _digest(mapped) != self._entry["row_groups"][group]:
            raise ValueError(f"its row group {group} is not the one written")
        n = self._parquet.metadata.row_group(group).num_rows
        # Arrow starts another page after 20,000 rows: only a structure of more atoms has such a row group.
        if n <= ROW_GROUP_ATOMS and n * self._row_bytes < PAGE_BYTES:
            self._check_one_page(group, n)
            raw, offset = mapped, len(mapped) - n * self._row_bytes
            names = [name for name in self._parquet.schema_arrow.names if name != _FEATURES]
            columns = self._columns(group, names)
        else:
            columns = self._columns(group, self._parquet.schema_arrow.names)
            raw, offset = columns[_FEATURES].buffers()[1], self._row_bytes * columns[_FEATURES].offset
        features = np.frombuffer(raw, storage_type(self._metadata), n * self._metadata.width, offset)
        return FeatureBlock(
            columns["structure"].to_numpy(),
            columns["atom"].to_numpy(),
            columns["number"].to_numpy(),
            columns["force"].flatten().to_numpy().reshape(n, 3),
            columns["zbl"].flatten().to_numpy().reshape(n, 3),
            features.astype(np.float32, copy=False).reshape(n, self._metadata.width),
            self._part_index,
        )

    @property
    def _row_bytes(self) -> int:
        return self._metadata.width * storage_type(self._metadata).itemsize

    def _check_one_page(self, group: int, n: int) -> None:
        """Raise ValueError unless a row group ends with its features, and nothing but a page's header precedes them."""
        found = self._parquet.metadata.row_group(group)
        column = found.column(found.num_columns - 1)
        header = column.total_compressed_size - n * self._row_bytes
        end = column.data_page_offset + column.total_compressed_size
        layout = column.path_in_schema, column.compression, 0 < header <= _LONGEST_HEADER, end
        if layout != (_FEATURES, "UNCOMPRESSED", True, self._spans[group][1]):
            raise ValueError(f"the features of its row group {group} are not one page as written here")

    def _columns(self, group: int, names: list[str]) -> dict[str, pa.Array]:
        table = self._parquet.read_row_group(group, columns=names, use_threads=False)
        combined = {name: table.column(name).combine_chunks() for name in names}
        # combine_chunks copies only where a row group came in several chunks.
        return {
            name: array.chunk(0) if isinstance(array, pa.ChunkedArray) else array for name, array in combined.items()
        }


def written(path: Path) -> dict[str, Any]:
    """Return what the manifest keeps of the bytes: their number, digests of all, of the footer, of each row group."""
    size = path.stat().st_size
    return {
        "bytes": size,
        "sha256": file_digest(path),
        "footer_sha256": footer_digest(path),
        "row_groups": [_digest(_mapped(path, *span)) for span in _spans(pq.read_metadata(path), size)],
    }


def footer_digest(path: Path) -> str:
    """Return the sha256 of a Parquet file's footer, which the digests of row groups do not cover."""
    with path.open("rb") as handle:
        handle.seek(-8, 2)
        tail = handle.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or length + 12 > path.stat().st_size:
            raise ValueError("no Parquet footer")
        handle.seek(-8 - length, 2)
        return hashlib.sha256(handle.read()).hexdigest()


def _mapped(path: Path, start: int, stop: int) -> memoryview:
    """Return a part of a file, mapped for as long as it is referred to: a whole file would count as memory in use."""
    first = start - start % mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as handle:
        mapped = mmap.mmap(handle.fileno(), stop - first, access=mmap.ACCESS_READ, offset=first)
    return memoryview(mapped)[start - first :]


def _expect(path: Path, start: int, stop: int) -> None:
    """Have the system read a part of a file while other work goes on, where there is a way to ask for it."""
    if not hasattr(os, "posix_fadvise"):
        return
    with path.open("rb") as handle:
        for first in range(start, stop, _FETCHED):
            os.posix_fadvise(handle.fileno(), first, min(_FETCHED, stop - first), os.POSIX_FADV_WILLNEED)


def _spans(metadata: pq.FileMetaData, size: int) -> list[tuple[int, int]]:
    """Return where row groups begin and end: all of the file but for its footer."""
    starts = [metadata.row_group(group).column(0).data_page_offset for group in range(metadata.num_row_groups)]
    footer = size - metadata.serialized_size - 8
    return list(itertools.pairwise([0, *starts[1:], footer]))


def _digest(content: memoryview) -> str:
    return xxhash.xxh3_128_hexdigest(content)
