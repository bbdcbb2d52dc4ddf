"""Predictions for files of structures: extended XYZ and ASE trajectories in, extended XYZ out, streamed."""

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from forceuq.applied.predictor import ForcePrediction, Predictor, unlabelled
from forceuq.data.frames import TRAJECTORY_MAGIC, FrameError, trajectory_frames, xyz_frames
from forceuq.data.structures import Structure
from forceuq.errors import DataError
from forceuq.files import whole_file

if TYPE_CHECKING:
    from ase import Atoms

# Atoms whose predictions are in memory at once (a larger structure goes alone).
_ATOMS = 20_000
SUFFIXES = (".xyz", ".extxyz")
# What is written beside what a frame brings.
ARRAYS = ("forceuq_forces", "forceuq_std", "forceuq_rank", "forceuq_component_std", "forceuq_correlation")
Frame = tuple[str, "Atoms", Structure]


@dataclass
class Summary:
    """What was predicted.

    Args:
        frames: how many.
        atoms: how many.
        mean_std: of all atoms, eV/Å.
        largest_std: of one atom, eV/Å.
        largest_at: file, frame and atom that has it.
        beyond: atoms less certain than every atom of the validation part.
    """

    frames: int = 0
    atoms: int = 0
    mean_std: float = 0.0
    largest_std: float = -1.0
    largest_at: str = ""
    beyond: int = 0
    _sum: float = field(default=0.0, repr=False)

    def add(self, place: str, prediction: ForcePrediction) -> None:
        """Take in the prediction of a frame."""
        std = prediction.std
        self.frames += 1
        self.atoms += len(std)
        self._sum += float(std.sum())
        self.mean_std = self._sum / self.atoms
        self.beyond += int(np.sum(prediction.rank >= 1.0))
        atom = int(np.argmax(std))
        if std[atom] > self.largest_std:
            self.largest_std, self.largest_at = float(std[atom]), f"{place}, atom {atom}"


def predict_files(predictor: Predictor, files: Sequence[Path], output: Path) -> Summary:
    """Predict every frame of files and write them with all that they bring and what is predicted.

    That is ``forceuq_forces`` (eV/Å), ``forceuq_std`` (eV/Å) and ``forceuq_rank`` of each atom, as of
    ``ForcePrediction``, and its covariance as ``forceuq_component_std`` (x, y, z, eV/Å) and
    ``forceuq_correlation`` (yz, xz, xy): the file's eight decimals would do for no small variance. Memory: some 20,000
    atoms.

    Args:
        predictor: the method.
        files: extended XYZ or ASE trajectories, with or without forces of their own.
        output: extended XYZ; it exists only once it is whole.

    Raises:
        DataError: a file that is damaged or would be replaced, or a frame that cannot be predicted, by file and frame.
    """
    if output.suffix.lower() not in SUFFIXES:
        raise DataError(f"the output is extended XYZ: its name must end in {' or '.join(SUFFIXES)}", file=output)
    if output.resolve() in {file.resolve() for file in files}:
        raise DataError("would be replaced by its own predictions: write another file", file=output)
    summary = Summary()
    with ExitStack() as stack:
        temporary = stack.enter_context(whole_file(output))
        stream = stack.enter_context(temporary.open("w", encoding="utf-8"))
        for frames in _together(frame for file in files for frame in _frames(file)):
            for (place, atoms, _), found in zip(frames, predictor.predict([s for *_, s in frames]), strict=True):
                _write(stream, atoms, found)
                summary.add(place, found)
        if not summary.frames:
            raise DataError("no frames in it", file=", ".join(map(str, files)))
    return summary


def _together(frames: Iterable[Frame]) -> Iterator[list[Frame]]:
    gathered: list[Frame] = []
    atoms = 0
    for frame in frames:
        if gathered and atoms + len(frame[2]) > _ATOMS:
            yield gathered
            gathered, atoms = [], 0
        gathered.append(frame)
        atoms += len(frame[2])
    if gathered:
        yield gathered


def _frames(file: Path) -> Iterator[Frame]:
    try:
        with file.open("rb") as stream:
            trajectory = stream.read(len(TRAJECTORY_MAGIC)) == TRAJECTORY_MAGIC
            stream.seek(0)
            found = trajectory_frames(file, file) if trajectory else xyz_frames(stream, file, _cut_off(file))
            for index, atoms in found:
                place = f"{file}, frame {index}"
                structure = unlabelled(atoms, place)
                assert not isinstance(atoms, FrameError)  # which unlabelled() has refused
                yield place, atoms, structure
    except OSError as error:
        raise DataError(f"cannot be read ({error})", file=file) from error


def _cut_off(file: Path) -> Any:
    def refuse(message: str) -> None:
        raise DataError(message, file=file)

    return refuse


def _write(stream: TextIO, atoms: "Atoms", found: ForcePrediction) -> None:
    from ase.io.extxyz import write_xyz

    values = (found.forces, found.std, found.rank, found.component_std, found.correlation)
    for name, value in zip(ARRAYS, values, strict=True):
        atoms.arrays[name] = value
    text = io.StringIO()
    write_xyz(text, [atoms])
    stream.write(text.getvalue())
