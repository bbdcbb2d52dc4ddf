"""How atom features lie in memory and in the cache's Parquet files."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SCHEMA = "features"
VERSION = 3
MANIFEST = "manifest.json"
# Atoms in a row group, at most: the unit that is read, and read out of order.
ROW_GROUP_ATOMS = 16_384
# A row group's features are one page where they take less than this: Arrow's pages end before 2 GiB.
PAGE_BYTES = 2**30

Precision = Literal["float32", "float16"]
_STORED: dict[Precision, str] = {"float32": "<f4", "float16": "<f2"}


@dataclass(frozen=True)
class FeatureMetadata:
    """What a cache holds and what made it.

    Args:
        width: D, features a row.
        backbone: kind of the backbone.
        backbone_version: version of the library that ran it.
        weights_sha256: digest of the backbone's weights.
        layer: which layer's output the features are.
        targets: K, targets a row.
        rows_per_atom: rows an atom (1 for a direct force head).
        dataset: the dataset's name.
        part: the part's name.
        shard: which of the part's shards this is; the shards are consecutive structures, in order.
        shards: how many there are.
        precision: of the features as stored; they are float32 when read.
    """

    width: int
    backbone: str
    backbone_version: str
    weights_sha256: str
    layer: str = "node"
    targets: int = 3
    rows_per_atom: int = 1
    dataset: str = ""
    part: str = ""
    shard: int = 0
    shards: int = 1
    precision: Precision = "float32"


@dataclass(frozen=True)
class FeatureBlock:
    """Consecutive atoms of whole structures.

    Args:
        structure: (n,) int64, the structure's row in its structures file.
        atom: (n,) int32, the atom's index within its structure.
        number: (n,) int16, the atomic number.
        force: (n, 3) float64, the reference force, eV/Å.
        zbl: (n, 3) float64, what the backbone adds after its head, eV/Å.
        features: (n, D) float32, a view of the file where that has float32: not to be written to, not always aligned.
        part_index: index of the part that the block is from, among those that are read.
    """

    structure: NDArray[np.int64]
    atom: NDArray[np.int32]
    number: NDArray[np.int16]
    force: NDArray[np.float64]
    zbl: NDArray[np.float64]
    features: NDArray[np.float32]
    part_index: int = 0

    def __len__(self) -> int:
        return len(self.structure)

    @property
    def starts(self) -> NDArray[np.int64]:
        """(s + 1,) offsets of the block's s structures, the last being n."""
        changes = np.flatnonzero(self.structure[1:] != self.structure[:-1]) + 1
        return np.concatenate([[0], changes, [len(self.structure)]]).astype(np.int64)

    def rows(self, start: int, stop: int) -> "FeatureBlock":
        """Return the atoms ``start`` to ``stop`` as views."""
        part = slice(start, stop)
        return FeatureBlock(
            self.structure[part],
            self.atom[part],
            self.number[part],
            self.force[part],
            self.zbl[part],
            self.features[part],
            self.part_index,
        )


def cuts(starts: NDArray[np.int64], max_atoms: int) -> list[int]:
    """Return offsets, at structure boundaries, of runs of at most ``max_atoms`` (or one larger structure).

    Args:
        starts: (s + 1,) offsets of s structures, the last being the number of atoms.
        max_atoms: atoms a run may have.
    """
    offsets = [0]
    while offsets[-1] < starts[-1]:
        stop = starts[np.searchsorted(starts, offsets[-1] + max_atoms, side="right") - 1]
        if stop == offsets[-1]:
            stop = starts[np.searchsorted(starts, offsets[-1], side="right")]
        offsets.append(int(stop))
    return offsets


def arrow_schema(metadata: FeatureMetadata) -> pa.Schema:
    """Return the schema of a file, with the metadata in its header."""
    header = {"schema": SCHEMA, "version": VERSION, **asdict(metadata)}
    vector = pa.list_(pa.float64(), 3)
    return pa.schema(
        [
            pa.field("structure", pa.int64(), nullable=False),
            pa.field("atom", pa.int32(), nullable=False),
            pa.field("number", pa.int16(), nullable=False),
            pa.field("force", vector, nullable=False),
            pa.field("zbl", vector, nullable=False),
            pa.field("features", pa.binary(storage_type(metadata).itemsize * metadata.width), nullable=False),
        ],
        metadata={b"forceuq": json.dumps(header, sort_keys=True).encode()},
    )


def storage_type(metadata: FeatureMetadata) -> np.dtype[Any]:
    """Return the type of a feature as it is stored.

    Raises:
        KeyError: the metadata name no precision that is known.
    """
    return np.dtype(_STORED[metadata.precision])
