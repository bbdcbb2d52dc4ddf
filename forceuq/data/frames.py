"""Frames that ASE reads: extended XYZ, streamed, and ASE trajectories; and their conversion to structures.

Extended XYZ: https://github.com/libAtoms/extxyz. A frame that cannot be parsed is told apart from a file in which the
frames' ends are lost: the first is one bad record, the second an error.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from forceuq.data.structures import Structure, structure
from forceuq.errors import DataError

if TYPE_CHECKING:
    from ase import Atoms

FRAME_SUFFIXES = (".xyz", ".extxyz", ".traj")
# How an ASE trajectory file begins.
TRAJECTORY_MAGIC = b"- of Ulm"


class FrameError(ValueError):
    """One frame that cannot be read; the frames after it can."""


def xyz_frames(
    stream: IO[bytes], file: Path, warn: Callable[[str], None], record: str | None = None
) -> "Iterator[tuple[int, Atoms | FrameError]]":
    """Stream the frames of an extended XYZ file with their indices; memory: one frame.

    Args:
        stream: the bytes; read once from begin to end.
        file: what errors name.
        warn: is told of a last line without an end: it may be cut off inside its last number.
        record: the member of an archive, for errors.

    Raises:
        DataError: a line that should hold the number of atoms does not, or the last frame is cut off.
    """
    from ase.io.extxyz import read_xyz

    index = number = 0
    while head := stream.readline():
        number += 1
        if not head.strip():
            continue  # blank lines between frames and at the end
        try:
            n = int(head)
        except ValueError:
            raise DataError(
                f"line {number}, where frame {index} should begin with its number of atoms, is {head[:80].strip()!r}; "
                "the file is damaged or not extended XYZ",
                file=file,
                record=record,
            ) from None
        lines = [stream.readline() for _ in range(n + 1)]
        if not lines or not lines[-1]:
            raise DataError(
                f"ends inside frame {index} of {n} atoms; the file is cut off: fetch it again",
                file=file,
                record=record,
            )
        if not lines[-1].endswith(b"\n"):
            place = "" if record is None else f" of {record}"
            warn(
                f"the last line{place} has no end: the file may be cut off, and the last number of frame {index} wrong"
            )
        try:
            # A frame at a time: ASE's own iterator would go through the whole file first, then seek.
            yield index, next(read_xyz(io.StringIO(b"".join([head, *lines]).decode()), 0))
        except _UNREADABLE as error:
            yield index, FrameError(_reason(error))
        number += n + 1
        index += 1


def trajectory_frames(path: Path, file: Path, record: str | None = None) -> "Iterator[tuple[int, Atoms | FrameError]]":
    """Stream the frames of an ASE trajectory file with their indices; memory: one frame.

    Raises:
        DataError: it is not a whole trajectory file.
    """
    from ase.io.trajectory import TrajectoryReader

    try:
        reader: Any = TrajectoryReader(path)  # type: ignore[no-untyped-call]
    except (*_UNREADABLE, AttributeError) as error:
        raise DataError(f"not a whole ASE trajectory ({_reason(error)})", file=file, record=record) from None
    with reader:
        for index in range(len(reader)):
            try:
                yield index, reader[index]
            except (*_UNREADABLE, AttributeError) as error:
                yield index, FrameError(_reason(error))


def structure_of(
    atoms: "Atoms | FrameError",
    structure_id: str,
    group_id: str,
    *,
    energy_key: str = "energy",
    forces_key: str = "forces",
) -> Structure:
    """Return ASE atoms with their labels as a structure.

    Args:
        atoms: what ``xyz_frames`` or ``trajectory_frames`` gave.
        structure_id: unique within the data set.
        group_id: what may not be split between parts.
        energy_key: name of the energy (eV) among the calculator's results or in ``info``; it may be missing.
        forces_key: name of the forces (eV/Å) among the calculator's results or the per-atom arrays.

    Raises:
        ValueError: the frame could not be read, has no such forces, or is periodic along some directions only.
    """
    if isinstance(atoms, FrameError):
        raise atoms
    results: dict[str, Any] = dict(getattr(atoms.calc, "results", None) or {})
    arrays = {**atoms.arrays, **results}
    if forces_key not in arrays:
        there = sorted(set(arrays) - {"numbers", "positions"})
        raise FrameError(f"no '{forces_key}' of the atoms; there are: {', '.join(there) or 'none'}")
    energy = {**atoms.info, **results}.get(energy_key)
    if atoms.pbc.any() and not atoms.pbc.all():
        raise FrameError("periodic along some directions only")
    return structure(
        structure_id,
        group_id,
        numbers=atoms.numbers,
        positions=atoms.positions,
        forces=arrays[forces_key],
        cell=np.asarray(atoms.cell) if atoms.pbc.all() else None,
        energy=energy,
    )


# What ASE raises where a frame's text or record is not what it should be (XYZError is an OSError).
_UNREADABLE = (KeyError, IndexError, TypeError, ValueError, ArithmeticError, OSError, EOFError, StopIteration)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the data
        raise error
    if isinstance(error, KeyError):
        return f"unknown element or column {error}"
    return str(error) or type(error).__name__
