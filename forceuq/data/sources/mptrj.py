"""MPtrj: relaxation trajectories of the Materials Project; B. Deng et al., Nat. Mach. Intell. 5, 1031 (2023),
doi:10.1038/s42256-023-00716-3; data doi:10.6084/m9.figshare.23713842.

The raw file is one JSON object, material -> frame -> record. It is cut between materials and parsed by several
processes, a material at a time. Frames are put in strata by their energy per atom above that of the relaxed
structure.
"""

import contextlib
import gc
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator

from forceuq.data.json_members import Span, member_spans, read_span
from forceuq.data.splits import PartRef, Task, cut_groups, write_splits
from forceuq.data.structure_blocks import StructureBlock
from forceuq.data.structures import StructureWriter, read_columns, structures_metadata
from forceuq.errors import DataError
from forceuq.processes import ordered_map

# More would wait for the one that cuts the file and writes the structures; and each takes about 130 MB.
MAX_THREADS = 6
# Of JSON that a process is given at a time, if no material is larger.
_PIECE = 8 * 2**20

PARTS = ("train", "val", "id", "near", "mid", "far")
STRATA = PARTS[2:]


class Options(BaseModel):
    """Settings of the data set MPtrj (or of another one in its layout)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strata: tuple[float, float, float] = Field(
        default=(0.005, 0.0175, 0.07),
        description="Boundaries between ID, near, mid and far: energy above the relaxed structure, eV/atom.",
    )
    fractions: tuple[float, float, float] = Field(
        default=(0.8, 0.1, 0.1), description="Shares of the materials in train, validation and test."
    )
    seed: int = Field(default=1, ge=0, description="Seed of the split of the materials.")
    max_bad_fraction: float = Field(
        default=0.01, ge=0, le=1, description="Share of damaged frames that is put up with."
    )

    @field_validator("strata")
    @classmethod
    def _increasing(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if not all(map(math.isfinite, value)) or not value[0] < value[1] < value[2]:
            raise ValueError(f"{list(value)} does not increase; the paper's are [0.005, 0.0175, 0.07]")
        return value

    @field_validator("fractions")
    @classmethod
    def _sum_to_one(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if not all(0 < share < 1 for share in value) or abs(sum(value) - 1) > 1e-9:
            raise ValueError(f"{list(value)} are not three positive shares that sum to 1, such as [0.8, 0.1, 0.1]")
        return value


def parts(options: Options) -> tuple[str, ...]:  # noqa: ARG001 - the interface of every source
    """Return train, val, id, near, mid, far."""
    return PARTS


def tasks(dataset: str, options: Options) -> tuple[Task, ...]:  # noqa: ARG001 - the interface of every source
    """Return the one task, evaluated on the four strata of the held-out materials."""
    evaluate: dict[str, tuple[PartRef, ...]] = {name: (PartRef(dataset, name),) for name in STRATA}
    return (Task("mptrj", (PartRef(dataset, "train"),), (PartRef(dataset, "val"),), evaluate),)


def convert(raw: Path, output: Path, options: Options, threads: int = 1) -> None:
    """Read the frames into a structures file, whose bytes do not depend on ``threads``.

    Structure ids are the frame ids, the group is the material, the energy is ``corrected_total_energy``. Frames
    with missing, ragged, non-finite or disordered content are left out and reported with id and reason.

    Args:
        raw: the JSON file.
        output: the structures file.
        options: settings.
        threads: processes that parse, at most ``MAX_THREADS``; 1: this one does.

    Raises:
        DataError: the JSON is damaged, or more than ``max_bad_fraction`` of the frames are.
    """
    with StructureWriter(output, options.max_bad_fraction, {"source": "mptrj"}) as writer:
        for table, rejected in ordered_map(_read_piece, _pieces(raw), min(threads, MAX_THREADS)):
            writer.add_table(table, rejected)


def split(structures: Path, output: Path, options: Options) -> None:
    """Cut the structures into the paper's parts.

    Materials are cut into train, validation and test; the cut depends on the seed and on the set of material ids
    alone. Parts train and val are the frames of the first stratum of their materials; id, near, mid and far are
    the strata of the test materials' frames. Other frames are in no part.

    Raises:
        DataError: a part would be empty (named).
    """
    if (source := structures_metadata(structures).get("source")) != "mptrj":
        raise DataError(f"holds {source!r}, not 'mptrj'; read the raw file again", file=structures)
    table = read_columns(structures, ["structure_id", "group_id", "energy_above_relaxed"])
    use, material = cut_groups(table.column("group_id").to_pylist(), options.fractions, options.seed)
    above = table.column("energy_above_relaxed").to_numpy()
    stratum = np.digitize(above, options.strata)
    part = np.where(use[material] == 2, stratum + 2, np.where(stratum == 0, use[material], -1))
    rows = np.flatnonzero(part >= 0)
    ids = table.column("structure_id").take(rows).to_pylist()
    write_splits(
        output,
        ids,
        rows,
        [PARTS[index] for index in part[rows].tolist()],
        expected=PARTS,
        metadata={
            "source": "mptrj",
            "seed": options.seed,
            "strata": options.strata,
            "fractions": options.fractions,
            "materials": {name: int(np.sum(use == index)) for index, name in enumerate(("train", "val", "test"))},
        },
    )


@dataclass(frozen=True)
class _Piece:
    """Consecutive materials of the raw file."""

    raw: Path
    spans: tuple[Span, ...]


def _pieces(raw: Path) -> Iterator[_Piece]:
    spans: list[Span] = []
    for span in member_spans(raw):
        spans.append(span)
        if span.stop - spans[0].start >= _PIECE:
            yield _Piece(raw, tuple(spans))
            spans = []
    if spans:
        yield _Piece(raw, tuple(spans))


def _read_piece(piece: _Piece) -> tuple[pa.Table, list[tuple[int, str, str]]]:
    block = _block(piece, quick=True)
    if block.may_coincide():
        block = _block(piece, quick=False)
    return block.table(), block.rejected


def _block(piece: _Piece, quick: bool) -> StructureBlock:
    from forceuq.data.sources._mptrj_frames import read_materials

    block = StructureBlock()
    with piece.raw.open("rb", buffering=0) as handle, _no_collection():
        for span in piece.spans:
            try:
                read_materials(block, read_span(handle.fileno(), span), quick and span.single)
            except ValueError as error:
                raise DataError(
                    f"not a whole JSON file (in the material at byte {span.start}: {error}); fetch it again",
                    file=piece.raw,
                ) from error
    return block


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Stop Python's search for cycles: parsed JSON has none, and the search takes as long as the parsing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
