"""Relaxation trajectories of face-centred cubic alloys with effective-medium theory (ASE's EMT).

EMT: K. W. Jacobsen, P. Stoltze, J. K. Nørskov, Surf. Sci. 366, 394 (1996), doi:10.1016/0039-6028(96)00816-3;
parameters for Al, Ni, Cu, Pd, Ag, Pt and Au. Each system is an ordered or random decoration of an fcc
supercell; its trajectory starts from a strained and rattled cell and relaxes atoms and cell, so, as in the
Materials Project's trajectories, the energy falls along it to that of the relaxed structure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from forceuq.data.generators.molecules import derived_seed
from forceuq.errors import ConfigurationError, DataError

CellSteps = Literal["exponential", "linear", "none"]
METALS = ("Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au")
# Supercells of the fcc primitive and conventional cells: (conventional?, repeats).
_SHAPES = ((True, (1, 1, 1)), (False, (2, 2, 1)), (False, (2, 2, 2)), (True, (2, 1, 1)), (False, (3, 2, 1)))


@dataclass(frozen=True)
class AlloySystem:
    """A decoration of an fcc supercell: what a material id names.

    Args:
        name: unique, such as ``Cu3Au-5f0c``.
        symbols: the element on each site.
        shape: index of the supercell's shape.
    """

    name: str
    symbols: tuple[str, ...]
    shape: int


@dataclass(frozen=True, eq=False)
class AlloyFrame:
    """One periodic structure with EMT labels.

    Args:
        numbers: (n,) int64, atomic numbers.
        cell: (3, 3) float64, lattice vectors as rows, Å.
        positions: (n, 3) float64, Å.
        energy: eV.
        forces: (n, 3) float64, eV/Å.
        stress: (3, 3) float64, eV/Å³, positive under tension (ASE's sign).
    """

    numbers: NDArray[np.int64]
    cell: NDArray[np.float64]
    positions: NDArray[np.float64]
    energy: float
    forces: NDArray[np.float64]
    stress: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class AlloyTrajectory:
    """Frames of one system's relaxation, in its order.

    Args:
        system: what was relaxed.
        frames: from the strained and rattled cell towards the relaxed one.
        relaxed_energy_per_atom: eV/atom, of the relaxed structure; no frame lies below it.
    """

    system: AlloySystem
    frames: tuple[AlloyFrame, ...]
    relaxed_energy_per_atom: float


def pair(first: str, second: str) -> tuple[str, str]:
    """Return a binary system's two elements in alphabetical order.

    Raises:
        ConfigurationError: an element that EMT does not know, or the same one twice.
    """
    for symbol in (first, second):
        if symbol not in METALS:
            raise ConfigurationError(f"EMT has no parameters for {symbol!r}; choose from {', '.join(METALS)}")
    if first == second:
        raise ConfigurationError(f"a binary system needs two different elements, not {first!r} twice")
    return (first, second) if first < second else (second, first)


def binary_pairs(exclude: Sequence[tuple[str, str]] = ()) -> tuple[tuple[str, str], ...]:
    """Return the binary systems of the seven EMT metals but for ``exclude``, in alphabetical order."""
    left_out = {pair(*names) for names in exclude}
    return tuple(names for names in combinations(sorted(METALS), 2) if names not in left_out)


def alloy_systems(
    pairs: Sequence[tuple[str, str]], *, per_pair: int, seed: int, pure: Sequence[str] = (), per_pure: int = 1
) -> tuple[AlloySystem, ...]:
    """Return ``per_pair`` decorations of each binary system and ``per_pure`` cells of each pure metal.

    Supercells hold 4 to 8 atoms and both elements. Deterministic in the arguments; a pair's systems do not
    depend on which other pairs are asked for.
    """
    systems = []
    for first, second in (pair(*names) for names in pairs):
        for index in range(per_pair):
            random = np.random.default_rng(derived_seed(seed, first, second, index))
            shape = int(random.integers(len(_SHAPES)))
            n = len(_supercell(shape))
            count = int(random.integers(1, n))
            symbols = np.array([first] * count + [second] * (n - count))
            systems.append(_named(tuple(str(s) for s in random.permutation(symbols)), shape, index))
    for metal in pure:
        for index in range(per_pure):
            shape = index % len(_SHAPES)
            systems.append(_named((metal,) * len(_supercell(shape)), shape, index))
    return tuple(systems)


def ternary_systems(n: int, seed: int) -> tuple[AlloySystem, ...]:
    """Return ``n`` decorations of supercells of 4 to 8 atoms with three metals each, which vary from one to the next.

    The first systems do not depend on how many are asked for.
    """
    triples = list(combinations(sorted(METALS), 3))
    order = np.random.default_rng(derived_seed(seed, "ternary")).permutation(len(triples))
    systems = []
    for index in range(n):
        metals = triples[int(order[index % len(triples)])]
        random = np.random.default_rng(derived_seed(seed, *metals, index))
        shape = int(random.integers(len(_SHAPES)))
        more = random.choice(metals, len(_supercell(shape)) - len(metals))
        systems.append(_named(tuple(str(s) for s in random.permutation([*metals, *more])), shape, index))
    return tuple(systems)


def sample_alloy(
    system: AlloySystem,
    n_frames: int,
    seed: int,
    *,
    rattle: float = 0.15,
    strain: float = 0.06,
    steps: int = 300,
    fmax: float = 0.01,
    cell_steps: CellSteps = "exponential",
) -> AlloyTrajectory:
    """Relax a strained, rattled alloy with EMT and return ``n_frames`` frames spread over the energy's fall.

    Args:
        system: what to relax.
        n_frames: frames to return; fewer where the relaxation took fewer steps.
        seed: of the rattle and strain (and the system's name).
        rattle: standard deviation of the displacements, Å.
        strain: standard deviation of the six strain components; the volume's share of it is three times as likely.
        steps: largest number of relaxation steps.
        fmax: largest force (and stress measure) of the relaxed structure, eV/Å.
        cell_steps: how the cell relaxes with the atoms: by steps in the logarithm of its deformation, or in the
            deformation itself (the same minimum, less than half the time), or not at all.

    Raises:
        DataError: the relaxation gave a non-finite energy.
    """
    from ase.calculators.emt import EMT
    from ase.filters import FrechetCellFilter, UnitCellFilter
    from ase.optimize import FIRE
    from threadpoolctl import threadpool_limits

    random = np.random.default_rng(derived_seed(seed, system.name, "alloy"))
    atoms = _supercell(system.shape)
    atoms.set_chemical_symbols(list(system.symbols))
    # Vegard's law for the lattice, then a random symmetric strain and rattle.
    lattice = float(np.mean([_lattice_constant(s) for s in system.symbols]))
    components = strain * random.standard_normal((3, 3)) / 2
    deformation = np.eye(3) + (components + components.T) / 2 + strain * random.uniform(-1, 1) * np.eye(3)
    atoms.set_cell(np.asarray(atoms.cell) * lattice @ deformation, scale_atoms=True)
    atoms.positions += rattle * random.standard_normal((len(atoms), 3))
    atoms.calc = EMT()  # type: ignore[no-untyped-call]
    path: list[AlloyFrame] = []

    def record() -> None:
        path.append(
            AlloyFrame(
                numbers=atoms.numbers.astype(np.int64),
                cell=np.array(atoms.cell),
                positions=atoms.positions.copy(),
                energy=float(atoms.get_potential_energy()),
                forces=atoms.get_forces().copy(),
                stress=atoms.get_stress(voigt=False).copy(),
            )
        )

    with threadpool_limits(1):
        filters: dict[str, Any] = {
            "exponential": FrechetCellFilter,
            "linear": UnitCellFilter,
            "none": lambda atoms: atoms,
        }
        optimizer = FIRE(filters[cell_steps](atoms), logfile=None)
        optimizer.attach(record)
        optimizer.run(fmax=fmax, steps=steps)
    energies = np.array([frame.energy for frame in path])
    if not np.all(np.isfinite(energies)):
        raise DataError("EMT gave a non-finite energy; use a smaller strain or rattle", record=system.name)
    lowest = float(energies.min())
    chosen = _spread(energies - lowest, n_frames)
    frames = tuple(path[index] for index in chosen)
    return AlloyTrajectory(system, frames, lowest / len(atoms))


def _spread(above: NDArray[np.float64], n_frames: int) -> list[int]:
    """Return indices of up to ``n_frames`` frames at about equal steps of the root of the energy above the last."""
    if len(above) <= n_frames:
        return list(range(len(above)))
    # The root is about proportional to the distance from the minimum: few frames crowd at the end.
    levels = np.linspace(1.0, 0.0, n_frames) * np.sqrt(above.max())
    chosen: list[int] = []
    roots = np.sqrt(above)
    for level in levels:
        order = np.argsort(np.abs(roots - level), kind="stable")
        chosen.append(next(int(index) for index in order if int(index) not in chosen))
    return sorted(chosen)


def _supercell(shape: int) -> Any:
    """Return an fcc supercell with lattice constant 1 Å, of placeholder atoms."""
    from ase.build import bulk

    cubic, repeats = _SHAPES[shape]
    cell: Any = bulk("Cu", "fcc", a=1.0, cubic=cubic)
    return cell.repeat(repeats)


def _named(symbols: tuple[str, ...], shape: int, index: int) -> AlloySystem:
    counts = {symbol: symbols.count(symbol) for symbol in sorted(set(symbols))}
    formula = "".join(symbol + (str(count) if count > 1 else "") for symbol, count in counts.items())
    return AlloySystem(f"{formula}-{shape}{index:03d}", symbols, shape)


def _lattice_constant(symbol: str) -> float:
    from ase.data import atomic_numbers, reference_states

    state: Any = reference_states[atomic_numbers[symbol]]
    if state is None or state["symmetry"] != "fcc":
        raise ConfigurationError(f"{symbol} is not an fcc metal; choose from {', '.join(METALS)}")
    return float(state["a"])
