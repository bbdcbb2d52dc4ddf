"""Molecular dynamics of small molecules on the GFN2-xTB potential-energy surface.

GFN2-xTB: C. Bannwarth, S. Ehlert, S. Grimme, J. Chem. Theory Comput. 15, 1652 (2019),
doi:10.1021/acs.jctc.8b01176, as implemented by tblite. Starting geometries: RDKit's ETKDG,
doi:10.1021/acs.jcim.5b00654.

The frames sample the canonical ensemble at a temperature. The Boltzmann distribution of *positions* does not
depend on the masses, so every atom is given the same mass: without the fast hydrogen vibrations the time
step is four times longer than usual, and fewer single points buy more independent frames. Velocities and
dynamics have no meaning here and are not kept.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forceuq.errors import DataError

HARTREE = 27.211386245988  # eV, CODATA 2018
BOHR = 0.529177210903  # Å, CODATA 2018
BOLTZMANN = 8.617333262e-5  # eV/K, CODATA 2018
_ACCELERATION = 9.648533212e-3  # Å/fs² of 1 eV/Å acting on 1 u
_MASS = 12.0  # u, of every atom; see the module's docstring
_LONGEST_BOND = 2.0  # times its length in the starting geometry: farther is a broken molecule


@dataclass(frozen=True, eq=False)
class MoleculeFrames:
    """Frames of one molecule, without periodicity.

    Args:
        name: the molecule's name.
        smiles: canonical SMILES.
        numbers: (n,) int64, atomic numbers.
        positions: (frames, n, 3) float64, Å.
        energies: (frames,) float64, total GFN2-xTB energies, eV.
        forces: (frames, n, 3) float64, eV/Å.
    """

    name: str
    smiles: str
    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    energies: NDArray[np.float64]
    forces: NDArray[np.float64]


def derived_seed(seed: int, *names: object) -> int:
    """Return a 31-bit seed that depends on ``seed`` and ``names`` alone (not on the process or its hashing)."""
    text = "\0".join([str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1


def canonical_smiles(smiles: str) -> str:
    """Return RDKit's canonical SMILES.

    Raises:
        DataError: RDKit cannot read it.
    """
    from rdkit import Chem

    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        raise DataError(f"{smiles!r} is not a SMILES that RDKit can read; correct it in the molecule list")
    return str(Chem.MolToSmiles(molecule))


def embed_molecule(
    name: str, smiles: str, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Return atomic numbers (n,), positions (n, 3) in Å and bonds (bonds, 2) of a conformer (ETKDG, then MMFF94).

    Raises:
        DataError: the SMILES cannot be read or no conformer was found.
    """
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    molecule: Any = Chem.AddHs(Chem.MolFromSmiles(canonical_smiles(smiles)))
    if rdDistGeom.EmbedMolecule(molecule, randomSeed=seed) != 0:
        raise DataError(f"RDKit found no conformer of {smiles!r}; leave it out or use another SMILES", record=name)
    rdForceFieldHelpers.MMFFOptimizeMolecule(molecule, maxIters=500)
    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()], dtype=np.int64)
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in molecule.GetBonds()]
    positions = np.array(molecule.GetConformer().GetPositions(), dtype=np.float64)
    return numbers, positions, np.array(bonds, dtype=np.int64).reshape(-1, 2)


class GFN2:
    """GFN2-xTB energies and forces of one molecule (neutral, closed shell); use inside ``threadpool_limits(1)``."""

    def __init__(self, name: str, numbers: NDArray[np.int64], positions: NDArray[np.float64]) -> None:
        from tblite.interface import Calculator

        self._name = name
        self._calculator = Calculator("GFN2-xTB", numbers, positions / BOHR)
        self._calculator.set("verbosity", 0)
        self._last: Any = None

    def __call__(self, positions: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Return the energy (eV) and forces (n, 3) (eV/Å) at ``positions`` (n, 3) in Å.

        Raises:
            DataError: the self-consistent field did not converge.
        """
        self._calculator.update(positions / BOHR)
        try:
            # Starting from the previous density saves a few iterations along a trajectory.
            self._last = self._calculator.singlepoint(self._last)
        except RuntimeError as error:
            raise DataError(
                f"GFN2-xTB failed ({error}); lower the temperature or leave the molecule out", record=self._name
            ) from error
        energy = float(self._last.get("energy")) * HARTREE
        forces = np.asarray(self._last.get("gradient"), dtype=np.float64) * (-HARTREE / BOHR)
        return energy, forces


def sample_molecule(
    name: str,
    smiles: str,
    n_frames: int,
    temperature: float,
    seed: int,
    *,
    timestep: float = 2.0,
    stride: int = 6,
    equilibration: int = 100,
    friction: float = 0.02,
) -> MoleculeFrames:
    """Sample a molecule at a temperature by Langevin dynamics with GFN2-xTB forces.

    The integrator is BAOAB (B. Leimkuhler, C. Matthews, J. Chem. Phys. 138, 174102 (2013),
    doi:10.1063/1.4802990). The same arguments give the same bytes on the same machine, whatever the process or
    the number of threads: everything runs on one thread, and every random number comes from ``seed``.

    Args:
        name: used in messages and to derive the random numbers.
        smiles: the molecule, neutral and closed shell.
        n_frames: frames to return.
        temperature: K.
        seed: of the conformer and of the noise.
        timestep: fs, for atoms of 12 u each.
        stride: steps between frames.
        equilibration: steps before the first frame.
        friction: 1/fs.

    Raises:
        DataError: unreadable SMILES, no conformer, GFN2-xTB did not converge, or the molecule fell apart.
    """
    import tblite.interface  # noqa: F401  # before the limit, which binds only libraries that are loaded
    from threadpoolctl import threadpool_limits

    numbers, positions, bonds = embed_molecule(name, smiles, derived_seed(seed, name, "conformer"))
    random = np.random.default_rng(derived_seed(seed, name, "langevin", temperature))
    n = len(numbers)
    thermal = np.sqrt(BOLTZMANN * temperature * _ACCELERATION / _MASS)  # Å/fs
    velocities = thermal * random.standard_normal((n, 3))
    decay = np.exp(-friction * timestep)
    kick = 0.5 * timestep * _ACCELERATION / _MASS
    lengths = np.linalg.norm(positions[bonds[:, 0]] - positions[bonds[:, 1]], axis=1)
    frames = np.empty((n_frames, n, 3))
    energies = np.empty(n_frames)
    forces_out = np.empty((n_frames, n, 3))
    with threadpool_limits(1):
        potential = GFN2(name, numbers, positions)
        energy, forces = potential(positions)
        for step in range(equilibration + (n_frames - 1) * stride + 1):
            if step >= equilibration and (step - equilibration) % stride == 0:
                stretched = np.linalg.norm(positions[bonds[:, 0]] - positions[bonds[:, 1]], axis=1)
                if np.any(stretched > _LONGEST_BOND * lengths):
                    raise DataError(
                        f"a bond of {smiles!r} broke at {temperature} K; lower the temperature", record=name
                    )
                frame = (step - equilibration) // stride
                frames[frame], energies[frame], forces_out[frame] = positions, energy, forces
            velocities = velocities + kick * forces
            positions = positions + 0.5 * timestep * velocities
            noise = thermal * random.standard_normal((n, 3))
            velocities = decay * velocities + np.sqrt(1.0 - decay**2) * noise
            positions = positions + 0.5 * timestep * velocities
            energy, forces = potential(positions)
            velocities = velocities + kick * forces
    return MoleculeFrames(name, canonical_smiles(smiles), numbers, frames, energies, forces_out)
