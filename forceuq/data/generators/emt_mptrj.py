"""A JSON file in MPtrj's layout, of relaxation trajectories of binary alloys with ASE's EMT."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from forceuq.files import whole_file

_KBAR = 1602.1766208  # kBar in an eV/Å³


class Options(BaseModel):
    """Which alloys, and how many frames of each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pairs: tuple[tuple[str, str], ...] = Field(
        default=(
            ("Cu", "Au"), ("Al", "Ni"), ("Ag", "Pd"), ("Cu", "Pt"),
            ("Ni", "Pd"), ("Al", "Cu"), ("Au", "Ag"), ("Ni", "Pt"),
        ),
        min_length=1,
        description="Binary systems.",
    )  # fmt: skip
    materials_per_pair: int = Field(default=12, ge=1, description="Decorated cells of each binary system.")
    frames_per_material: int = Field(default=14, ge=2, description="Frames of each relaxation.")
    seed: int = Field(default=0, ge=0, description="Of decorations, strains and rattles.")


def generate(output: Path, options: Options) -> None:
    """Write the file, one material at a time; the same bytes for the same options.

    Raises:
        DataError: EMT gave a non-finite energy.
    """
    from tqdm import tqdm

    from forceuq.data.generators.alloys import alloy_systems, sample_alloy

    systems = alloy_systems(options.pairs, per_pair=options.materials_per_pair, seed=options.seed)
    with whole_file(output) as temporary, temporary.open("w", encoding="utf-8") as file:
        for index, system in enumerate(tqdm(systems, desc="alloys", unit="material")):
            trajectory = sample_alloy(system, options.frames_per_material, options.seed)
            material = f"emt-{system.name}"
            frames = {
                f"{material}-0-{step}": _frame(material, frame, trajectory.relaxed_energy_per_atom)
                for step, frame in enumerate(trajectory.frames)
            }
            file.write("{" if index == 0 else ", ")
            file.write(f"{json.dumps(material)}: {json.dumps(frames)}")
        file.write("}\n")


def _frame(material: str, frame: Any, relaxed: float) -> dict[str, Any]:
    from ase.data import chemical_symbols

    sites = [
        {"species": [{"element": symbol, "occu": 1}], "abc": abc, "xyz": xyz, "label": symbol, "properties": {}}
        for symbol, abc, xyz in zip(
            (chemical_symbols[z] for z in frame.numbers),
            _fractional(frame).tolist(),
            frame.positions.tolist(),
            strict=True,
        )
    ]
    per_atom = frame.energy / len(frame.numbers)
    return {
        "structure": {"lattice": {"matrix": frame.cell.tolist()}, "sites": sites},
        "uncorrected_total_energy": frame.energy,
        "corrected_total_energy": frame.energy,
        "energy_per_atom": per_atom,
        "ef_per_atom": per_atom,
        "e_per_atom_relaxed": relaxed,
        "ef_per_atom_relaxed": relaxed,
        "force": frame.forces.tolist(),
        # MPtrj's stress has VASP's sign, the opposite of ASE's.
        "stress": (-frame.stress * _KBAR).tolist(),
        "magmom": None,
        "bandgap": None,
        "mp_id": material,
    }


def _fractional(frame: Any) -> Any:
    import numpy as np

    return np.linalg.solve(frame.cell.T, frame.positions.T).T
