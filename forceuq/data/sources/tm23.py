"""TM23: molecular dynamics of 27 transition metals, cold, warm and molten; C. J. Owen et al., npj Comput. Mater. 10,
105 (2024), doi:10.1038/s41524-024-01264-z; data on Materials Cloud, record tcrks-ymp88.

The raw file is an archive with ``<El>_<cold|warm|melt>_nequip_<train|test>.xyz`` (extended XYZ, eV, Å) and, for each
metal, their unions ``<El>_2700cwm_<train|test>.xyz``, which are not read: no frame counts twice. The licence allows no
derivatives and the paper only evaluates on it, so there is nothing here to train on.
"""

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from forceuq.data.archives import members, say_passed_over, whole_archive
from forceuq.data.frames import structure_of, xyz_frames
from forceuq.data.splits import WHOLE, Task, write_whole
from forceuq.data.structures import StructureWriter, structures_metadata
from forceuq.errors import DataError

TEMPERATURES = ("cold", "warm", "melt")
SPLITS = ("train", "test")
_FILE = re.compile(rf"([A-Z][a-z]?)_({'|'.join(TEMPERATURES)})_nequip_({'|'.join(SPLITS)})")
_UNION = re.compile(rf"([A-Z][a-z]?)_2700cwm_({'|'.join(SPLITS)})")


class Options(BaseModel):
    """Settings of the data set TM23 (or of another one in its layout); it is evaluated on, never trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    energy_key: str = Field(default="energy", min_length=1, description="Name of the energy (eV) in the XYZ files.")
    forces_key: str = Field(default="forces", min_length=1, description="Name of the forces (eV/Å) in the XYZ files.")
    max_bad_fraction: float = Field(
        default=0.01, ge=0, le=1, description="Share of damaged frames that is put up with."
    )


def parts(options: Options) -> tuple[str, ...]:  # noqa: ARG001 - the interface of every source
    """Return the one part."""
    return (WHOLE,)


def tasks(dataset: str, options: Options) -> tuple[Task, ...]:  # noqa: ARG001 - the interface of every source
    """Return no task: the data set is evaluated on by other data sets' tasks."""
    return ()


def convert(raw: Path, output: Path, options: Options) -> None:
    """Stream the frames of every metal, temperature and published split into a structures file.

    Structure ids are ``tm23-<El>-<cold|warm|melt>-<train|test>-<index of the frame, six digits>``; the group is the
    metal. What is neither a file of this layout nor a union, and no XYZ file, is named in the report.

    Raises:
        DataError: the archive is damaged or unsafe, holds no file of this layout, a file of a metal is missing or
            there twice (named), an XYZ file is cut off, or more than ``max_bad_fraction`` of the frames are damaged.
    """
    metadata: dict[str, Any] = {"source": "tm23"}
    read: set[tuple[str, str, str]] = set()
    with whole_archive(raw), StructureWriter(output, options.max_bad_fraction, metadata) as writer:
        passed_over: list[str] = []
        for member in members(raw, (".xyz",), passed_over):
            stem = member.path.stem
            if (match := _FILE.fullmatch(stem)) is None:
                if _UNION.fullmatch(stem) is None:
                    raise DataError(
                        "neither <El>_<cold|warm|melt>_nequip_<train|test>.xyz nor a union of those; is this TM23?",
                        file=raw,
                        record=member.name,
                    )
                continue
            metal, temperature, split_name = match.groups()
            if (metal, temperature, split_name) in read:
                raise DataError("the archive holds this file twice", file=raw, record=member.name)
            read.add((metal, temperature, split_name))
            for index, atoms in xyz_frames(member.stream, raw, writer.warn, member.name):
                identifier = f"tm23-{metal}-{temperature}-{split_name}-{index:06d}"
                try:
                    item = structure_of(
                        atoms, identifier, metal, energy_key=options.energy_key, forces_key=options.forces_key
                    )
                except (TypeError, ValueError) as error:
                    writer.reject(identifier, str(error))
                else:
                    writer.add(item)
        _check_complete(read, raw)
        say_passed_over(passed_over, writer.warn)


def split(structures: Path, output: Path, options: Options) -> None:  # noqa: ARG001 - the interface of every source
    """Put every structure in the one part.

    Raises:
        DataError: the file holds another data set.
    """
    if (source := structures_metadata(structures).get("source")) != "tm23":
        raise DataError(f"holds {source!r}, not 'tm23'; read the raw file again", file=structures)
    write_whole(structures, output, "tm23")


def _check_complete(read: set[tuple[str, str, str]], raw: Path) -> None:
    """Raise where a metal lacks one of its files; unions alone are no substitute."""
    if not read:
        raise DataError("no <El>_<cold|warm|melt>_nequip_<train|test>.xyz in the archive; is this TM23?", file=raw)
    missing = [
        f"{metal}_{temperature}_nequip_{part}.xyz"
        for metal in sorted({metal for metal, _, _ in read})
        for temperature in TEMPERATURES
        for part in SPLITS
        if (metal, temperature, part) not in read
    ]
    if missing:
        raise DataError(f"not in the archive: {', '.join(missing)}; fetch it again", file=raw)
