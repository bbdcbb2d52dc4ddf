"""Relaxation trajectories of binary alloys labelled with effective-medium theory, in the layout of MPtrj."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from forceuq.data.generators.alloys import AlloyFrame, AlloyTrajectory, CellSteps, alloy_systems, pair, sample_alloy
from forceuq.errors import ForceUQError
from forceuq.files import whole_file

KBAR = 1602.1766208  # of 1 eV/Å³


class Options(BaseModel):
    """What is relaxed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pairs: tuple[tuple[str, str], ...] = Field(
        default=(
            ("Cu", "Au"), ("Al", "Ni"), ("Ag", "Pd"), ("Cu", "Pt"), ("Ni", "Pd"), ("Al", "Cu"), ("Au", "Ag"),
            ("Ni", "Pt"),
        ),
        min_length=1,
        description="Binary systems of Al, Ni, Cu, Pd, Ag, Pt and Au.",
    )  # fmt: skip
    materials_per_pair: int = Field(default=12, ge=1, description="Decorated cells of each binary system.")
    frames: int = Field(default=14, ge=2, description="Frames of each relaxation, at most.")
    cell_steps: CellSteps = Field(
        default="linear", description="How cells relax; with `none` they stay as strained, which is faster still."
    )
    seed: int = Field(default=0, ge=0, description="Of decorations, strains and rattles.")

    @field_validator("pairs")
    @classmethod
    def _known(cls, value: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        try:
            systems = [pair(*names) for names in value]
        except ForceUQError as error:
            raise ValueError(str(error)) from None
        if len(set(systems)) != len(systems):
            raise ValueError(f"{[list(names) for names in value]} names a binary system twice")
        return value


def generate(output: Path, options: Options) -> None:
    """Write the JSON file, a material at a time; the same options give the same bytes on the same machine.

    Raises:
        DataError: EMT gave a non-finite energy (the system is named).
    """
    from tqdm import tqdm

    systems = alloy_systems(options.pairs, per_pair=options.materials_per_pair, seed=options.seed)
    with whole_file(output) as temporary, temporary.open("w", encoding="utf-8") as handle:
        handle.write("{")
        for index, system in enumerate(tqdm(systems, desc="EMT", unit="alloy", mininterval=2)):
            material = f"emt-{system.name}"
            trajectory = sample_alloy(system, options.frames, options.seed, cell_steps=options.cell_steps)
            record = json.dumps(_material(material, trajectory), allow_nan=False)
            handle.write(f"{',' if index else ''}\n{json.dumps(material)}: {record}")
        handle.write("\n}\n")


def _material(material: str, trajectory: AlloyTrajectory) -> dict[str, Any]:
    return {
        f"{material}-0-{step}": _record(material, frame, trajectory.relaxed_energy_per_atom)
        for step, frame in enumerate(trajectory.frames)
    }


def _record(material: str, frame: AlloyFrame, relaxed: float) -> dict[str, Any]:
    from ase.data import chemical_symbols
    from numpy.linalg import inv

    fractional = frame.positions @ inv(frame.cell)
    symbols = [chemical_symbols[number] for number in frame.numbers]
    sites = [
        {
            "species": [{"element": symbol, "occu": 1}],
            "abc": abc.tolist(),
            "xyz": xyz.tolist(),
            "label": symbol,
            "properties": {},
        }
        for symbol, abc, xyz in zip(symbols, fractional, frame.positions, strict=True)
    ]
    per_atom = frame.energy / len(sites)
    return {
        "structure": {"lattice": {"matrix": frame.cell.tolist()}, "sites": sites},
        "uncorrected_total_energy": frame.energy,
        "corrected_total_energy": frame.energy,
        "energy_per_atom": per_atom,
        "ef_per_atom": None,
        "e_per_atom_relaxed": relaxed,
        "ef_per_atom_relaxed": None,
        "force": frame.forces.tolist(),
        # VASP's sign, as in MPtrj: positive under pressure.
        "stress": (-KBAR * frame.stress).tolist(),
        "magmom": None,
        "bandgap": 0.0,
        "mp_id": material,
    }
