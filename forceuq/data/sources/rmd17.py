"""rMD17: ten small molecules, 100 000 frames each, PBE/def2-SVP; A. S. Christensen, O. A. von Lilienfeld,
Mach. Learn.: Sci. Technol. 1, 045018 (2020), doi:10.1088/2632-2153/abba6f; data doi:10.6084/m9.figshare.12672038.

The raw file is a tar archive (any compression) of ``rmd17/npz_data/rmd17_<molecule>.npz`` (kcal/mol, Å) and
``rmd17/splits/index_{train,test}_0K.csv``. Only the frames of one index split are read.
"""

import difflib
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from forceuq.data.archives import members, unpack, whole_archive
from forceuq.data.splits import PartRef, Task, write_splits
from forceuq.data.structures import StructureWriter, read_columns, structure, structures_metadata
from forceuq.errors import DataError

KCAL_PER_MOL = 0.0433641153  # eV
MOLECULES = (
    "aspirin", "azobenzene", "benzene", "ethanol", "malonaldehyde", "naphthalene", "paracetamol", "salicylic",
    "toluene", "uracil",
)  # fmt: skip
_ARRAYS = ("nuclear_charges", "coords", "energies", "forces")
# Beyond these sizes a member is not what the layout says; nothing like it is unpacked to disk.
_LARGEST_MEMBER = {".npz": 4 * 2**30, ".csv": 64 * 2**20}


class Options(BaseModel):
    """Settings of the data set rMD17 (or of another one in its layout)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    molecules: tuple[str, ...] = Field(default=MOLECULES, min_length=1, description="Molecules that are read.")
    training_molecules: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Molecules that are trained on, one at a time; null: each of `molecules`.",
        json_schema_extra={"task_only": True},
    )
    split_index: int = Field(default=1, ge=1, le=99, description="K of splits/index_train_0K.csv.")
    validation_fraction: float = Field(default=0.1, gt=0, lt=1, description="Share of the training split.")
    validation_seed: int = Field(default=0, ge=0, description="Seed of the choice of validation frames.")
    max_bad_fraction: float = Field(
        default=0.01, ge=0, le=1, description="Share of damaged frames that is put up with."
    )

    @field_validator("molecules", "training_molecules")
    @classmethod
    def _names(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in value or ():
            # Names become parts, hence folder names.
            if not name or not name[0].isalnum() or not all(c.isalnum() or c in "_-" for c in name):
                raise ValueError(f"{name!r} is not a molecule's name (letters, digits, '_' and '-')")
        if value is not None and len(set(value)) != len(value):
            raise ValueError(f"{list(value)} names a molecule twice")
        return value

    @model_validator(mode="after")
    def _trained_on_what_is_read(self) -> "Options":
        for name in self.training_molecules or ():
            if name not in self.molecules:
                near = difflib.get_close_matches(name, self.molecules, n=3, cutoff=0.0)
                raise ValueError(f"training_molecules: {name!r} is not among molecules; nearest: {', '.join(near)}")
        return self

    @property
    def trained_on(self) -> tuple[str, ...]:
        """The molecules that are trained on, one at a time."""
        return self.molecules if self.training_molecules is None else self.training_molecules


def parts(options: Options) -> tuple[str, ...]:
    """Return ``<molecule>-train``, ``-val`` and ``-test`` of each molecule."""
    return tuple(f"{molecule}-{part}" for molecule in options.molecules for part in ("train", "val", "test"))


def tasks(dataset: str, options: Options) -> tuple[Task, ...]:
    """Return a task for each training molecule: ID is its own test split, OOD those of all other molecules."""

    def tests(names: tuple[str, ...]) -> tuple[PartRef, ...]:
        return tuple(PartRef(dataset, f"{name}-test") for name in names)

    result = []
    for molecule in options.trained_on:
        others = tuple(name for name in options.molecules if name != molecule)
        evaluate = {"id": tests((molecule,))}
        if others:
            evaluate["ood"] = tests(others)
        train, validation = PartRef(dataset, f"{molecule}-train"), PartRef(dataset, f"{molecule}-val")
        result.append(Task(molecule, (train,), (validation,), evaluate))
    return tuple(result)


def convert(raw: Path, output: Path, options: Options) -> None:
    """Read the frames of one index split into a structures file, in one pass over the archive.

    Structure ids are ``rmd17-<molecule>-<index of the frame, six digits>``; the group is the molecule. The
    members needed are unpacked beside ``output`` (1.8 GB for the whole rMD17) and removed at the end.

    Raises:
        DataError: the archive is damaged or unsafe, a molecule or the split is missing (with the nearest names),
            an array is missing or of the wrong shape, or more than ``max_bad_fraction`` of the frames are damaged.
    """
    csv = {name: f"index_{name}_{options.split_index:02d}.csv" for name in ("train", "test")}
    npz = {molecule: f"rmd17_{molecule}.npz" for molecule in options.molecules}
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".rmd17-", dir=output.parent) as folder:
        files, seen = _unpack(raw, Path(folder), {*csv.values(), *npz.values()})
        for member in (*csv.values(), *npz.values()):
            if member not in files:
                near = difflib.get_close_matches(member, sorted(seen), n=3, cutoff=0.0) or ["none of this layout"]
                raise DataError(f"{member} is not in the archive; nearest there: {', '.join(near)}", file=raw)
        indices = {name: _read_indices(files[member], raw, member) for name, member in csv.items()}
        if common := sorted(set(indices["train"].tolist()) & set(indices["test"].tolist())):
            raise DataError(
                f"{len(common)} frames, such as {common[0]}, are in both splits", file=raw, record=csv["test"]
            )
        metadata = {
            "source": "rmd17",
            "split_index": options.split_index,
            **{name: values.tolist() for name, values in indices.items()},
        }
        frames = np.sort(np.concatenate(list(indices.values())))
        with StructureWriter(output, options.max_bad_fraction, metadata) as writer:
            for molecule, member in npz.items():
                arrays = _read_arrays(files[member], raw, member)
                if frames[-1] >= len(arrays["coords"]):
                    raise DataError(
                        f"the index split asks for frame {frames[-1]}, but there are {len(arrays['coords'])}",
                        file=raw,
                        record=member,
                    )
                for frame in frames.tolist():
                    identifier = f"rmd17-{molecule}-{frame:06d}"
                    try:
                        item = structure(
                            identifier,
                            molecule,
                            numbers=arrays["nuclear_charges"],
                            positions=arrays["coords"][frame],
                            forces=arrays["forces"][frame] * KCAL_PER_MOL,
                            energy=float(arrays["energies"][frame]) * KCAL_PER_MOL,
                        )
                    except (TypeError, ValueError) as error:
                        writer.reject(identifier, str(error))
                    else:
                        writer.add(item)
                files[member].unlink()


def split(structures: Path, output: Path, options: Options) -> None:
    """Cut the structures into the parts: test as published, validation cut from the published training split.

    The validation frames depend on ``validation_seed`` and on the set of the molecule's training ids alone.

    Raises:
        DataError: the structures were read with another index split, or a part would be empty (named).
    """
    metadata = structures_metadata(structures)
    if metadata.get("source") != "rmd17" or metadata.get("split_index") != options.split_index:
        raise DataError(
            f"holds {metadata.get('source')!r}, index split {metadata.get('split_index')}, not 'rmd17', index split "
            f"{options.split_index}; read the raw file again",
            file=structures,
        )
    table = read_columns(structures, ["structure_id", "group_id"])
    ids, groups = table.column("structure_id").to_pylist(), table.column("group_id").to_pylist()
    training = set(metadata["train"])
    chosen: dict[int, str] = {}
    for molecule in options.molecules:
        rows = {ids[row]: row for row, group in enumerate(groups) if group == molecule}
        train = sorted(name for name in rows if int(name.rpartition("-")[2]) in training)
        random = np.random.default_rng([options.validation_seed, *molecule.encode()])
        shuffled = [train[index] for index in random.permutation(len(train)).tolist()]
        validation = set(shuffled[: round(options.validation_fraction * len(train))])
        for name, row in rows.items():
            part = "val" if name in validation else "train"
            chosen[row] = f"{molecule}-{part if int(name.rpartition('-')[2]) in training else 'test'}"
    write_splits(
        output,
        [ids[row] for row in chosen],
        list(chosen),
        list(chosen.values()),
        expected=parts(options),
        metadata={
            "source": "rmd17",
            "split_index": options.split_index,
            "seed": options.validation_seed,
            "validation_fraction": options.validation_fraction,
        },
    )


def _unpack(raw: Path, folder: Path, wanted: set[str]) -> tuple[dict[str, Path], set[str]]:
    """Return the wanted members as files in ``folder``, and the names of all npz and csv files that were seen."""
    files: dict[str, Path] = {}
    seen: set[str] = set()
    with whole_archive(raw):
        for member in members(raw, tuple(_LARGEST_MEMBER)):
            name = member.path.name
            seen.add(name)
            if name not in wanted:
                continue
            if name in files:
                raise DataError("the archive holds this file twice", file=raw, record=member.name)
            if member.size > _LARGEST_MEMBER[member.suffix]:
                raise DataError(f"{member.size} bytes is more than any of rMD17", file=raw, record=member.name)
            files[name] = folder / name
            unpack(member, files[name], raw)
    return files, seen


def _read_indices(path: Path, raw: Path, member: str) -> NDArray[np.int64]:
    lines = path.read_text(encoding="utf-8", errors="replace").split()
    try:
        indices = np.array([int(line) for line in lines], dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise DataError(f"not one integer a line ({error})", file=raw, record=member) from None
    if not len(indices) or indices.min() < 0 or len(np.unique(indices)) != len(indices):
        raise DataError("empty, or with a negative or repeated index", file=raw, record=member)
    return indices


def _read_arrays(path: Path, raw: Path, member: str) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in _ARRAYS if name not in archive.files]
            if missing:
                raise DataError(f"no array {missing}; there are {archive.files}", file=raw, record=member)
            arrays = {name: np.asarray(archive[name]) for name in _ARRAYS}
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise DataError(f"cannot be read ({error}); fetch the archive again", file=raw, record=member) from error
    for name, array in arrays.items():
        if array.ndim == 0:
            raise DataError(f"{name} is a single value, not an array", file=raw, record=member)
        if array.dtype.kind not in "fiu":
            raise DataError(f"{name} holds {array.dtype}, not real numbers", file=raw, record=member)
    charges = arrays["nuclear_charges"]
    if not np.array_equal(charges, np.rint(charges)):
        raise DataError(f"nuclear_charges are no integers: {charges}", file=raw, record=member)
    frames, n = len(arrays["energies"]), len(charges)
    shapes = {"nuclear_charges": (n,), "coords": (frames, n, 3), "energies": (frames,), "forces": (frames, n, 3)}
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise DataError(f"{name} has the shape {arrays[name].shape}, not {shape}", file=raw, record=member)
    return arrays
