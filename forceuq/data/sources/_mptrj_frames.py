"""The frames of a material of MPtrj: quickly where it is as published, with reasons where it is not."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import msgspec
import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from forceuq.data.json_members import pairs_of, parse_members
from forceuq.data.structure_blocks import StructureBlock, all_sound
from forceuq.data.structure_columns import Columns
from forceuq.data.structures import Structure, structure

Vector = tuple[float, float, float]


class _Species(msgspec.Struct, gc=False):
    element: str
    # As it is published; what is not goes the careful way.
    occu: Literal[1]


class _Site(msgspec.Struct, gc=False):
    species: tuple[_Species]
    xyz: Vector


class _Lattice(msgspec.Struct, gc=False):
    matrix: tuple[Vector, Vector, Vector]


class _Crystal(msgspec.Struct, gc=False):
    lattice: _Lattice
    sites: list[_Site]


class _Record(msgspec.Struct, gc=False):
    structure: _Crystal
    corrected_total_energy: float
    energy_per_atom: float
    e_per_atom_relaxed: float
    force: list[Vector]


# Other keys are checked to be JSON, but no objects are made of them: that is most of a record. NaN, wherever it stands,
# is refused here and goes the careful way.
_DECODER = msgspec.json.Decoder(dict[str, dict[str, _Record]])
# In every record.
_ONCE = b'"corrected_total_energy"'


def read_materials(block: StructureBlock, text: bytes, single: bool) -> None:
    """Add the frames of the materials of a span; see ``json_members.parse_members``.

    Raises:
        ValueError: the text is not valid JSON.
    """
    if single:
        try:
            columns = _as_published(text)
        except (msgspec.DecodeError, KeyError, ValueError):
            pass
        else:
            if all_sound(columns):
                block.add_columns(columns)
                return
    for material, frames in parse_members(text):
        if not isinstance(frames, Mapping) or not frames:
            block.reject(material, "not an object of frames")
            continue
        for frame, record in pairs_of(frames):
            try:
                item = _structure(material, frame, record)
            except KeyError as error:
                block.reject(frame, f"no {error.args[0]}")
            except (AttributeError, IndexError, TypeError, ValueError, OverflowError) as error:
                block.reject(frame, str(error))
            else:
                block.add(item)


def _as_published(text: bytes) -> Columns:
    """Return the frames of one material.

    Raises:
        msgspec.DecodeError: a value that is needed is missing or of another type, or the text is not JSON.
        KeyError: an unknown element.
        ValueError: anything else that is not as published.
    """
    # What is skipped is not checked to be UTF-8.
    if not text.isascii():
        raise ValueError("not ASCII")
    ((material, frames),) = _DECODER.decode(b"{%b}" % text).items()
    # Of frames with one id the decoder keeps the last; each brings this key.
    if not frames or text.count(_ONCE) != len(frames):
        raise ValueError("no frames, or a repeated one")
    records = list(frames.values())
    atoms = [len(record.structure.sites) for record in records]
    if [len(record.force) for record in records] != atoms:
        raise ValueError("more or fewer forces than sites")
    sites = list(chain.from_iterable([record.structure.sites for record in records]))
    return Columns(
        structure_ids=list(frames),
        group_ids=[material] * len(frames),
        atoms=atoms,
        numbers=np.array([atomic_numbers[site.species[0].element] for site in sites], np.int32),
        positions=_vectors([site.xyz for site in sites]),
        cells=np.array([record.structure.lattice.matrix for record in records]),
        pbc=[True] * len(frames),
        energies=[record.corrected_total_energy for record in records],
        forces=_vectors(list(chain.from_iterable([record.force for record in records]))),
        energies_above_relaxed=[record.energy_per_atom - record.e_per_atom_relaxed for record in records],
    )


def _vectors(rows: Sequence[Vector]) -> NDArray[np.float64]:
    # A third of the time that numpy takes for nested sequences.
    return np.fromiter(chain.from_iterable(rows), np.float64, 3 * len(rows)).reshape(-1, 3)


def _structure(material: str, frame: str, record: Mapping[str, Any]) -> Structure:
    numbers, positions = [], []
    for site in record["structure"]["sites"]:
        species = site["species"]
        first = species[0]
        if len(species) != 1 or first["occu"] != 1:
            raise ValueError("a site of partial or mixed occupation")
        number = atomic_numbers.get(first["element"])
        if number is None:
            raise ValueError(f"unknown element {first['element']!r}")
        numbers.append(number)
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
