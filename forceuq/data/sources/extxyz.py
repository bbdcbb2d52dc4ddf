"""Your own data: extended XYZ or ASE trajectories, one file or an archive (or folder) of them.

Also reads the extended-XYZ re-export of MPtrj, a zip with a file a material whose frames carry ``material_id``,
``frame_id``, ``energy`` (uncorrected) and ``mp2020_corrected_energy`` (https://figshare.com/ndownloader/files/49034296);
it has no energies of the relaxed structures, hence none of the paper's strata.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from forceuq.data.archives import is_archive, members, say_passed_over, unpacked, whole_archive
from forceuq.data.frames import (
    FRAME_SUFFIXES,
    TRAJECTORY_MAGIC,
    FrameError,
    structure_of,
    trajectory_frames,
    xyz_frames,
)
from forceuq.data.splits import WHOLE, PartRef, Task, cut_groups, write_splits, write_whole
from forceuq.data.structures import Structure, StructureWriter, read_columns, structures_metadata
from forceuq.errors import DataError

if TYPE_CHECKING:
    from ase import Atoms

PARTS = ("train", "val", "test")


class Options(BaseModel):
    """Settings of your own data in extended XYZ or ASE trajectories."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fractions: tuple[float, float, float] | None = Field(
        default=(0.8, 0.1, 0.1),
        description="Shares of the groups in train, validation and test; null: nothing is trained on, all of it is"
        " evaluated by the tasks that `evaluate_with` names.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the cut.")
    group_by: str = Field(
        default="file",
        min_length=1,
        description="What is never cut in two: `file`, `frame`, or a frame's `info` key, such as `material_id`.",
    )
    id_key: str | None = Field(
        default=None,
        min_length=1,
        description="A frame's `info` key that is unique, such as `frame_id`; null: file and index in it.",
    )
    energy_key: str = Field(default="energy", min_length=1, description="Name of the energy (eV); frames may lack it.")
    forces_key: str = Field(default="forces", min_length=1, description="Name of the forces (eV/Å).")
    max_bad_fraction: float = Field(
        default=0.01, ge=0, le=1, description="Share of damaged frames that is put up with."
    )

    @field_validator("fractions")
    @classmethod
    def _sum_to_one(cls, value: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        if value is not None and (not all(0 < share < 1 for share in value) or abs(sum(value) - 1) > 1e-9):
            raise ValueError(f"{list(value)} are not three positive shares that sum to 1, such as [0.8, 0.1, 0.1]")
        return value


def parts(options: Options) -> tuple[str, ...]:
    """Return train, val and test; or the one part of a data set that is only evaluated on."""
    return PARTS if options.fractions is not None else (WHOLE,)


def tasks(dataset: str, options: Options) -> tuple[Task, ...]:
    """Return the task of the data set's own name, evaluated on its held-out groups; none where there is no training."""
    if options.fractions is None:
        return ()
    train, validation, test = ((PartRef(dataset, part),) for part in PARTS)
    return (Task(dataset, train, validation, {"id": test}),)


def convert(raw: Path, output: Path, options: Options) -> None:
    """Stream the frames of every file into a structures file.

    The raw file is extended XYZ, an ASE trajectory, or an archive (tar of any compression, zip) with files that end
    in .xyz, .extxyz or .traj, in upper case too; what else is in it is named in the report. Structure ids are
    ``<path in the archive>-<index>`` or what ``id_key`` names.

    Raises:
        DataError: a file is damaged (named), there is none, or more than ``max_bad_fraction`` of the frames are bad.
    """
    with whole_archive(raw), StructureWriter(output, options.max_bad_fraction, {"source": "extxyz"}) as writer:
        for name, index, atoms in _frames(raw, output, writer.warn):
            place = f"{name}-{index:06d}"
            try:
                item = _structure(atoms, name, place, options)
            except (TypeError, ValueError) as error:
                writer.reject(place, str(error))
            else:
                writer.add(item)


def split(structures: Path, output: Path, options: Options) -> None:
    """Cut the groups into train, validation and test, or put every structure in the one part.

    Raises:
        DataError: the file holds another data set, or there are too few groups for three parts.
    """
    if (source := structures_metadata(structures).get("source")) != "extxyz":
        raise DataError(f"holds {source!r}, not 'extxyz'; read the raw file again", file=structures)
    if options.fractions is None:
        write_whole(structures, output, "extxyz")
        return
    table = read_columns(structures, ["structure_id", "group_id"])
    use, group = cut_groups(table.column("group_id").to_pylist(), options.fractions, options.seed)
    if len(np.unique(use)) < len(PARTS):
        raise DataError(
            f"{len(use)} groups are too few for train, validation and test with the shares "
            f"{list(options.fractions)}; use a finer group_by (frame, or an info key)",
            file=structures,
        )
    write_splits(
        output,
        table.column("structure_id").to_pylist(),
        np.arange(len(group)),
        [PARTS[index] for index in use[group].tolist()],
        expected=PARTS,
        metadata={"source": "extxyz", "seed": options.seed, "fractions": options.fractions},
    )


def _frames(raw: Path, output: Path, warn: Callable[[str], None]) -> "Iterator[tuple[str, int, Atoms | FrameError]]":
    """Yield (file without suffix, index, frame) of all files."""
    if not is_archive(raw):
        with raw.open("rb") as stream:
            if stream.read(len(TRAJECTORY_MAGIC)) == TRAJECTORY_MAGIC:
                frames = trajectory_frames(raw, raw)
            else:
                stream.seek(0)
                frames = xyz_frames(stream, raw, warn)
            for index, atoms in frames:
                yield "frame", index, atoms
        return
    count = 0
    passed_over: list[str] = []
    for member in members(raw, FRAME_SUFFIXES, passed_over):
        count += 1
        name = str(member.path.with_suffix(""))
        if member.suffix != ".traj":
            for index, atoms in xyz_frames(member.stream, raw, warn, member.name):
                yield name, index, atoms
            continue
        with unpacked(member, raw, output) as path:
            for index, atoms in trajectory_frames(path, raw, member.name):
                yield name, index, atoms
    if not count:
        raise DataError(f"no file that ends in {', '.join(FRAME_SUFFIXES)} in it", file=raw)
    say_passed_over(passed_over, warn)


def _structure(atoms: "Atoms | FrameError", file: str, place: str, options: Options) -> Structure:
    if isinstance(atoms, FrameError):
        raise atoms
    identifier = place if options.id_key is None else _text(atoms, options.id_key)
    group = {"file": file, "frame": identifier}.get(options.group_by) or _text(atoms, options.group_by)
    return structure_of(atoms, identifier, group, energy_key=options.energy_key, forces_key=options.forces_key)


def _text(atoms: "Atoms", key: str) -> str:
    if key not in atoms.info:
        raise FrameError(f"no '{key}' of the frame; there are: {', '.join(sorted(atoms.info)) or 'none'}")
    return str(atoms.info[key])
