"""Frames and files for the tests of data sets, written by ASE."""

import io
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write


def frame(symbols="Cu2", seed=0, pbc=True, info=None, **results):
    """Return random atoms with random forces and an energy."""
    random = np.random.default_rng(seed)
    atoms = Atoms(symbols, cell=[[4, 0, 0], [0.5, 5, 0], [0, 0.25, 6]] if pbc else None, pbc=pbc)
    atoms.positions = random.uniform(0, 4, (len(atoms), 3))
    labels = {"energy": float(random.normal()), "forces": random.normal(size=(len(atoms), 3)), **results}
    atoms.calc = SinglePointCalculator(atoms, **{k: v for k, v in labels.items() if v is not None})
    atoms.info.update(info or {})
    return atoms


def xyz(frames) -> str:
    """Return frames as the text of an extended XYZ file."""
    buffer = io.StringIO()
    write(buffer, frames, format="extxyz")
    return buffer.getvalue()


def assert_read(item, atoms, atol=1e-7):
    """Assert that a structure is these atoms with their labels (extended XYZ has eight decimals)."""
    assert item.numbers.tolist() == atoms.numbers.tolist()
    np.testing.assert_allclose(item.positions, atoms.positions, atol=atol)
    np.testing.assert_allclose(item.forces, atoms.get_forces(), atol=atol)
    assert item.pbc == bool(atoms.pbc.all())
    np.testing.assert_allclose(item.cell, atoms.cell if atoms.pbc.all() else np.zeros((3, 3)), atol=atol)
    np.testing.assert_allclose(item.energy, atoms.get_potential_energy(), atol=atol)
    assert item.energy_above_relaxed is None


def no_traces(folder: Path) -> bool:
    """Return whether no temporary file or folder was left."""
    return not [path for path in folder.rglob("*") if path.name.startswith(".")]
