"""MPtrj: relaxation trajectories of the Materials Project; B. Deng et al., Nat. Mach. Intell. 5, 1031 (2023),
doi:10.1038/s42256-023-00716-3; data doi:10.6084/m9.figshare.23713842.

The raw file is one JSON object, material -> frame -> record. It is cut between materials and parsed by several
processes, a material at a time. Frames are put in strata by their energy per atom above that of the relaxed
structure.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator

from forceuq.data.json_members import Span, member_spans, parse_members, read_span
from forceuq.data.splits import PartRef, Task, write_splits
from forceuq.data.structure_blocks import StructureBlock
from forceuq.data.structures import Structure, StructureWriter, read_columns, structure, structures_metadata
from forceuq.errors import DataError
from forceuq.processes import ordered_map

# More would wait for the one that cuts the file and writes the structures; and each takes about 100 MB.
MAX_THREADS = 8
# Of JSON that a process is given at a time, if no material is larger.
_PIECE = 2 * 2**20

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
    materials, material = np.unique(np.asarray(table.column("group_id").to_pylist(), dtype=object), return_inverse=True)
    above = table.column("energy_above_relaxed").to_numpy()
    n = len(materials)
    train, val = round(options.fractions[0] * n), round(options.fractions[1] * n)
    # 0 train, 1 validation, 2 test.
    use = np.full(n, 2)
    order = np.random.default_rng(options.seed).permutation(n)
    use[order[:train]] = 0
    use[order[train : train + val]] = 1
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
    block = StructureBlock()
    with piece.raw.open("rb", buffering=0) as handle:
        for span in piece.spans:
            try:
                materials = parse_members(read_span(handle.fileno(), span), span.single)
            except ValueError as error:
                raise DataError(
                    f"not a whole JSON file (in the material at byte {span.start}: {error}); fetch it again",
                    file=piece.raw,
                ) from error
            for material, frames in materials:
                _read_material(block, material, frames)
    return block.table(), block.rejected


def _read_material(block: StructureBlock, material: str, frames: Any) -> None:
    if not isinstance(frames, Mapping) or not frames:
        block.reject(material, "not an object of frames")
        return
    for frame, record in frames.items():
        try:
            item = _structure(material, frame, record)
        except KeyError as error:
            block.reject(frame, f"no {error.args[0]}")
        except (AttributeError, IndexError, TypeError, ValueError, OverflowError) as error:
            block.reject(frame, str(error))
        else:
            block.add(item)


def _structure(material: str, frame: str, record: Mapping[str, Any]) -> Structure:
    from ase.data import atomic_numbers

    numbers, positions = [], []
    for site in record["structure"]["sites"]:
        species = site["species"]
        if len(species) != 1 or species[0]["occu"] != 1:
            raise ValueError("a site of partial or mixed occupation")
        symbol = species[0]["element"]
        if symbol not in atomic_numbers:
            raise ValueError(f"unknown element {symbol!r}")
        numbers.append(atomic_numbers[symbol])
        positions.append(site["xyz"])
    energies = {}
    for key in ("corrected_total_energy", "energy_per_atom", "e_per_atom_relaxed"):
        value = record[key]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{key} is {value!r}, not a number")
        energies[key] = value
    if record["force"] is None:
        raise ValueError("force is null")
    return structure(
        frame,
        material,
        numbers=numbers,
        positions=positions,
        forces=record["force"],
        cell=record["structure"]["lattice"]["matrix"],
        energy=energies["corrected_total_energy"],
        energy_above_relaxed=energies["energy_per_atom"] - energies["e_per_atom_relaxed"],
    )
