"""The samplers: the same bytes from the same seed in any process, forces that are the energy's gradient."""

import os
import subprocess
import sys

import numpy as np
import pytest

from forceuq.backbones.small.training_data import FrameOptions, generate_training_frames
from forceuq.data.generators.alloys import AlloySystem, alloy_systems, binary_pairs, pair, sample_alloy
from forceuq.data.generators.molecules import GFN2, canonical_smiles, sample_molecule
from forceuq.data.structures import read_structures
from forceuq.errors import ConfigurationError, DataError
from forceuq.files import file_digest

ONE_MOLECULE = """
import hashlib
from forceuq.data.generators.molecules import sample_molecule
f = sample_molecule("nitrobenzene", "O=[N+]([O-])c1ccccc1", 2, 600.0, 3, stride=3, equilibration=3)
print(hashlib.sha256(f.positions.tobytes() + f.energies.tobytes() + f.forces.tobytes()).hexdigest())
"""


def test_molecule_does_not_depend_on_process_or_threads():
    digests = set()
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        run = subprocess.run(
            [sys.executable, "-c", ONE_MOLECULE], env=environment, capture_output=True, text=True, check=True
        )
        digests.add(run.stdout.strip())
    assert len(digests) == 1


def test_molecule_follows_its_seed():
    def frames(seed: int):
        return sample_molecule("water", "O", 3, 500.0, seed, stride=2, equilibration=2)

    first, again, other = frames(1), frames(1), frames(2)
    assert np.array_equal(first.positions, again.positions)
    assert np.array_equal(first.forces, again.forces)
    assert not np.array_equal(first.positions, other.positions)
    assert first.numbers.tolist() == [8, 1, 1]


def test_forces_are_the_gradient_of_the_energy():
    frames = sample_molecule("formaldehyde", "C=O", 1, 600.0, 0, equilibration=10)
    potential = GFN2("formaldehyde", frames.numbers, frames.positions[0])
    step = 1e-3
    for atom, axis in ((0, 0), (1, 2), (3, 1)):
        energies = []
        for sign in (1, -1):
            moved = frames.positions[0].copy()
            moved[atom, axis] += sign * step
            energies.append(potential(moved)[0])
        gradient = (energies[0] - energies[1]) / (2 * step)
        assert frames.forces[0, atom, axis] == pytest.approx(-gradient, abs=2e-3)


def test_temperature_sets_the_potential_energy():
    # Near a minimum a vibration holds kT/2 of potential energy, and water has three.
    lowest = float(sample_molecule("water", "O", 1, 1e-3, 5, equilibration=500).energies[0])
    for temperature in (100.0, 600.0):
        frames = sample_molecule("water", "O", 600, temperature, 5, stride=8)
        expected = 3 * 8.617333262e-5 * temperature / 2
        assert float(np.mean(frames.energies)) - lowest == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("smiles", ["C(", "Xx"])
def test_unreadable_smiles_is_named(smiles):
    with pytest.raises(DataError, match="not a SMILES"):
        canonical_smiles(smiles)


def test_alloy_relaxes_downhill_and_follows_its_seed():
    (system, *_) = alloy_systems([("Cu", "Pd")], per_pair=1, seed=4)
    first, again, other = (sample_alloy(system, 6, seed, steps=200) for seed in (1, 1, 2))
    energies = [frame.energy / len(frame.numbers) for frame in first.frames]
    assert min(energies) >= first.relaxed_energy_per_atom
    assert energies[0] > energies[-1]
    assert np.abs(first.frames[-1].forces).max() < np.abs(first.frames[0].forces).max()
    assert all(np.array_equal(a.positions, b.positions) for a, b in zip(first.frames, again.frames, strict=True))
    assert not np.array_equal(first.frames[0].positions, other.frames[0].positions)


def test_cells_relax_to_the_same_energy_by_both_steps_and_stay_without():
    (system, *_) = alloy_systems([("Cu", "Pd")], per_pair=1, seed=4)
    exponential, linear, fixed = (
        sample_alloy(system, 6, 1, fmax=1e-3, cell_steps=steps) for steps in ("exponential", "linear", "none")
    )
    assert linear.relaxed_energy_per_atom == pytest.approx(exponential.relaxed_energy_per_atom, abs=1e-4)
    assert not np.array_equal(linear.frames[0].cell, linear.frames[-1].cell)
    assert fixed.relaxed_energy_per_atom > linear.relaxed_energy_per_atom
    assert all(np.array_equal(frame.cell, fixed.frames[0].cell) for frame in fixed.frames)


def test_alloy_systems_of_a_pair_do_not_depend_on_the_others():
    assert len(binary_pairs()) == 21
    both = alloy_systems([("Cu", "Pd"), ("Ag", "Cu")], per_pair=3, seed=0)
    assert both[:3] == alloy_systems([("Pd", "Cu")], per_pair=3, seed=0)
    assert all(set(system.symbols) == {"Cu", "Pd"} for system in both[:3])
    assert isinstance(both[0], AlloySystem)


def test_pair_names_what_emt_does_not_know():
    with pytest.raises(ConfigurationError, match="'Fe'"):
        pair("Fe", "Cu")
    with pytest.raises(ConfigurationError, match="two different"):
        pair("Cu", "Cu")


def test_training_frames_do_not_depend_on_the_workers(tmp_path):
    options = FrameOptions(
        max_molecules=1,
        frames_per_molecule=2,
        equilibration=2,
        stride=2,
        alloys_per_pair=1,
        cells_per_metal=0,
        frames_per_alloy=2,
        relaxation_steps=3,
    )
    for workers in (1, 2):
        generate_training_frames(tmp_path / f"{workers}.parquet", options, workers=workers)
    assert file_digest(tmp_path / "1.parquet") == file_digest(tmp_path / "2.parquet")
    ids = [s.structure_id for _, s in read_structures(tmp_path / "1.parquet")]
    assert {"/".join(i.split("/")[:2]) for i in ids} == {
        f"{part}/{kind}" for part in ("train", "validation") for kind in ("molecule", "alloy")
    }
