"""Frames for training the small backbone: GFN2-xTB molecules and EMT alloys, in the structures schema.

``structure_id`` reads ``<part>/<kind>/<system>/<frame>``: part ``train`` or ``validation``, kind ``molecule``
(system: canonical SMILES) or ``alloy`` (system: formula and index); ``group_id`` is the first three of these.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from forceuq.backbones.small import training_set
from forceuq.data.generators.alloys import METALS, AlloySystem, alloy_systems, sample_alloy
from forceuq.data.generators.molecules import sample_molecule
from forceuq.data.structures import Structure, StructureWriter, structure
from forceuq.processes import ordered_map


class FrameOptions(BaseModel):
    """What the small backbone's training frames are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(default=20260, ge=0, description="of conformers, dynamics, decorations and rattles")
    frames_per_molecule: int = Field(default=30, ge=1, description="frames of each molecule")
    temperature: float = Field(default=600.0, gt=0, description="of the molecules, K")
    stride: int = Field(default=5, ge=1, description="Langevin steps between frames")
    equilibration: int = Field(default=60, ge=0, description="Langevin steps before the first frame")
    max_molecules: int | None = Field(default=None, ge=1, description="only the first of the list (for tests)")
    alloys_per_pair: int = Field(default=24, ge=1, description="decorated cells of each binary system")
    cells_per_metal: int = Field(default=5, ge=0, description="cells of each pure metal")
    frames_per_alloy: int = Field(default=10, ge=1, description="frames of each alloy's relaxation")
    relaxation_steps: int = Field(default=60, ge=1, description="of each alloy; it need not end relaxed")


@dataclass(frozen=True)
class _Task:
    part: str
    system: str | AlloySystem
    options: FrameOptions


def generate_training_frames(output: Path, options: FrameOptions, *, workers: int = 1) -> None:
    """Write the training and validation frames of the small backbone; the same bytes for any ``workers``.

    Args:
        output: structures Parquet to write.
        options: sizes, temperature, seed.
        workers: processes; 1: this one alone.

    Raises:
        DataError: a molecule fell apart or GFN2-xTB did not converge (the message names it).
        ForceUQError: a process was ended from outside.
    """
    from tqdm import tqdm

    tasks = _tasks(options)
    metadata = {"made_by": "generate_training_frames", "options": options.model_dump(mode="json")}
    with StructureWriter(output, metadata=metadata) as writer:
        # Far ahead: some systems take many times longer than others.
        results = ordered_map(_sample, tasks, workers, ahead=32)
        for frames in tqdm(results, total=len(tasks), desc="training frames", unit="system", mininterval=5):
            for frame in frames:
                writer.add(frame)


def _tasks(options: FrameOptions) -> list[_Task]:
    molecules = {"train": training_set.training_molecules(), "validation": training_set.validation_molecules()}
    tasks = [
        _Task(part, smiles, options) for part, listed in molecules.items() for smiles in listed[: options.max_molecules]
    ]
    size = options.alloys_per_pair
    train = alloy_systems(
        training_set.training_pairs(),
        per_pair=size,
        seed=options.seed,
        pure=METALS,
        per_pure=options.cells_per_metal,
    )
    validation = alloy_systems(training_set.VALIDATION_PAIRS, per_pair=size, seed=options.seed)
    tasks += [_Task("train", system, options) for system in train]
    return tasks + [_Task("validation", system, options) for system in validation]


def _sample(task: _Task) -> list[Structure]:
    return list(_frames(task))


def _frames(task: _Task) -> Iterator[Structure]:
    options = task.options
    if isinstance(task.system, str):
        group = f"{task.part}/molecule/{task.system}"
        sampled = sample_molecule(
            task.system,
            task.system,
            options.frames_per_molecule,
            options.temperature,
            options.seed,
            stride=options.stride,
            equilibration=options.equilibration,
        )
        for index, positions in enumerate(sampled.positions):
            yield structure(
                f"{group}/{index:04d}",
                group,
                numbers=sampled.numbers,
                positions=positions,
                forces=sampled.forces[index],
                energy=float(sampled.energies[index]),
            )
    else:
        group = f"{task.part}/alloy/{task.system.name}"
        trajectory = sample_alloy(task.system, options.frames_per_alloy, options.seed, steps=options.relaxation_steps)
        for index, frame in enumerate(trajectory.frames):
            yield structure(
                f"{group}/{index:04d}",
                group,
                numbers=frame.numbers,
                positions=frame.positions,
                forces=frame.forces,
                cell=frame.cell,
                energy=frame.energy,
            )
