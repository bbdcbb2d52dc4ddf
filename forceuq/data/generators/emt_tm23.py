"""Metals with a vacancy, cold, warm and molten, labelled with effective-medium theory, in the layout of TM23.

The archive holds ``benchmarking_master_collection/<El>_<cold|warm|melt>_nequip_<train|test>.xyz`` and the unions
``<El>_2700cwm_<train|test>.xyz``. As in TM23, temperatures are 0.25, 0.75 and 1.25 of the melting point.
"""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from forceuq.data.generators.alloys import METALS
from forceuq.data.generators.molecules import derived_seed
from forceuq.errors import DataError
from forceuq.files import whole_file

FOLDER = "benchmarking_master_collection"
TEMPERATURES = {"cold": 0.25, "warm": 0.75, "melt": 1.25}  # of the melting point
MELTING_POINTS = {"Al": 933.0, "Ni": 1728.0, "Cu": 1358.0, "Pd": 1828.0, "Ag": 1235.0, "Pt": 2041.0, "Au": 1337.0}  # K
_STEP = 5.0  # fs; these atoms are heavy


class Options(BaseModel):
    """What is simulated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metals: tuple[str, ...] = Field(
        default=("Ag", "Ni", "Pt"), min_length=1, description="Of Al, Ni, Cu, Pd, Ag, Pt and Au."
    )
    train_frames: int = Field(default=3, ge=1, description="Frames of each metal and temperature in the train file.")
    test_frames: int = Field(default=2, ge=1, description="Frames of each metal and temperature in the test file.")
    equilibration: int = Field(default=60, ge=0, description="Steps of 5 fs before the first frame.")
    interval: int = Field(default=6, ge=1, description="Steps between frames.")
    seed: int = Field(default=0, ge=0, description="Of velocities, thermostat and split.")

    @field_validator("metals")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for symbol in value:
            if symbol not in METALS:
                raise ValueError(f"EMT has no parameters for {symbol!r}; choose from {', '.join(METALS)}")
        if len(set(value)) != len(value):
            raise ValueError(f"{list(value)} names a metal twice")
        return value


def generate(output: Path, options: Options) -> None:
    """Write the archive; the same options give the same bytes on the same machine.

    Raises:
        DataError: EMT gave a non-finite energy or force (metal and temperature are named).
    """
    from tqdm import tqdm

    with whole_file(output) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for metal in tqdm(options.metals, desc="EMT", unit="metal", mininterval=2):
            unions: dict[str, str] = {"train": "", "test": ""}
            for temperature in TEMPERATURES:
                frames = _frames(metal, temperature, options)
                random = np.random.default_rng(derived_seed(options.seed, metal, temperature, "split"))
                order = random.permutation(len(frames)).tolist()
                for part, chosen in (
                    ("train", order[: options.train_frames]),
                    ("test", order[options.train_frames :]),
                ):
                    text = _text([frames[index] for index in chosen])
                    unions[part] += text
                    _add(archive, f"{metal}_{temperature}_nequip_{part}.xyz", text)
            for part, text in unions.items():
                _add(archive, f"{metal}_2700cwm_{part}.xyz", text)


def _frames(metal: str, temperature: str, options: Options) -> list[Any]:
    """Return frames of a canonical simulation of 31 atoms and a vacancy, with energy and forces."""
    from ase import units
    from ase.build import bulk
    from ase.calculators.emt import EMT
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import thermalize_momenta
    from threadpoolctl import threadpool_limits

    kelvin = TEMPERATURES[temperature] * MELTING_POINTS[metal]
    random = np.random.default_rng(derived_seed(options.seed, metal, temperature, "dynamics"))
    # Four percent wider than the ground state when molten, as most of these metals are.
    lattice: Any = bulk(metal, "fcc", cubic=True)
    atoms = lattice.repeat(2)
    atoms.set_cell(atoms.cell * (1 + 0.032 * TEMPERATURES[temperature]), scale_atoms=True)
    del atoms[0]
    atoms.calc = EMT()  # type: ignore[no-untyped-call]
    # Twice the energy: half of it goes into the vibrations' potential energy.
    thermalize_momenta(atoms, temperature_K=2 * kelvin, rng=random)
    dynamics: Any = Langevin(
        atoms, _STEP * units.fs, temperature_K=kelvin, friction=0.02 / units.fs, fixcm=False, rng=random
    )
    frames = []
    with threadpool_limits(1):
        dynamics.run(options.equilibration)
        for _ in range(options.train_frames + options.test_frames):
            dynamics.run(options.interval)
            frame = atoms.copy()
            energy, forces = float(atoms.get_potential_energy()), atoms.get_forces().copy()
            if not (np.isfinite(energy) and np.isfinite(forces).all()):
                raise DataError("EMT gave a non-finite energy or force", record=f"{metal}, {temperature}")
            frame.calc = SinglePointCalculator(  # type: ignore[no-untyped-call]
                frame, energy=energy, forces=forces
            )
            del frame.arrays["momenta"]  # not in TM23
            frames.append(frame)
    return frames


def _text(frames: list[Any]) -> str:
    from ase.io import write

    buffer = io.StringIO()
    write(buffer, frames, format="extxyz")
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, text: str) -> None:
    # A fixed time stamp makes the bytes the same every time.
    archive.writestr(zipfile.ZipInfo(f"{FOLDER}/{name}"), text, zipfile.ZIP_DEFLATED)
