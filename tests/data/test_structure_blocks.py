"""Structures looked at together: accepted and rejected as one by one."""

from dataclasses import replace

import numpy as np
import pytest

from forceuq.data.structure_blocks import StructureBlock, all_sound
from forceuq.data.structure_columns import FIELDS, structure_columns
from forceuq.data.structures import fault, structure


def sound(index):
    rng = np.random.default_rng(index)
    n = 1 + index % 4
    return structure(
        f"s{index}",
        "group",
        numbers=rng.integers(1, 119, n),
        positions=rng.normal(size=(n, 3)),
        forces=rng.normal(size=(n, 3)),
        cell=np.diag([2.0, 3.0, 4.0]),
        energy=-1.0,
        energy_above_relaxed=0.1,
    )


FAULTS = {
    "no id": {"structure_id": ""},
    "no group": {"group_id": ""},
    "id is no text": {"structure_id": "a\udcff"},
    "group is no text": {"group_id": "\ud800"},
    "no atoms": {"numbers": np.zeros(0, np.int32), "positions": np.zeros((0, 3)), "forces": np.zeros((0, 3))},
    "number 0": {"numbers": np.array([1, 0], np.int32), "positions": np.ones((2, 3)), "forces": np.ones((2, 3))},
    "number 119": {"numbers": np.array([119], np.int32), "positions": np.ones((1, 3)), "forces": np.ones((1, 3))},
    "position inf": {"positions": np.array([[0, np.inf, 0], [0, 0, 0], [0, 0, 0]])},
    "force nan": {"forces": np.full((3, 3), np.nan)},
    "energy nan": {"energy": np.nan},
    "energy above inf": {"energy_above_relaxed": -np.inf},
    "cell nan": {"cell": np.full((3, 3), np.nan)},
    "flat cell": {"cell": np.diag([1.0, 1.0, 0.0])},
}


@pytest.mark.parametrize("place", [0, 3, 7])
@pytest.mark.parametrize("name", FAULTS)
def test_what_one_by_one_is_rejected_is_not_sound_together(name, place):
    rows = [sound(index) for index in range(8)]
    assert all_sound(structure_columns(rows))
    rows[place] = replace(sound(2), **{"structure_id": "bad", **FAULTS[name]})
    assert fault(rows[place]) is not None
    assert not all_sound(structure_columns(rows))


def test_columns_and_structures_and_what_is_rejected_keep_their_order():
    rows = [sound(index) for index in range(7)]
    bad = replace(sound(2), structure_id="bad", energy=np.nan)
    mixed, single = StructureBlock(), StructureBlock()
    mixed.add(rows[0])
    mixed.add_columns(structure_columns(rows[1:3]))
    mixed.add(bad)
    mixed.add_columns(structure_columns(rows[3:4]))
    mixed.add(rows[4])
    mixed.add(rows[5])
    mixed.reject("worse", "for a reason")
    mixed.add_columns(structure_columns(rows[6:]))
    for row in [*rows[:3], bad, *rows[3:6]]:
        single.add(row)
    single.reject("worse", "for a reason")
    single.add(rows[6])
    assert mixed.rejected == single.rejected == [(3, "bad", "energy not finite"), (6, "worse", "for a reason")]
    assert mixed.table().equals(single.table())
    assert mixed.table().column("structure_id").to_pylist() == [row.structure_id for row in rows]


def test_sums_that_overflow_are_left_to_the_look_at_each():
    rows = [replace(sound(2), structure_id=str(index), positions=1e308 * np.eye(3)) for index in range(3)]
    with np.errstate(over="ignore"):
        assert not all_sound(structure_columns(rows))
        block = StructureBlock()
        for row in rows:
            block.add(row)
    assert block.rejected == []
    assert len(block.table()) == 3


def test_atoms_at_one_position_are_found_in_many_structures_at_once():
    rows = [sound(index) for index in range(60)]
    block = StructureBlock()
    block.add_columns(structure_columns(rows[:30]))
    block.add_columns(structure_columns(rows[30:]))
    assert not block.may_coincide()
    for index in (1, 31, 59):
        # On the corner of the cell, where places wrap, with rounding on either side.
        positions = np.array([[-1e-12, 3, 4 + 1e-12], [1, 1, 1], [2, 0, 0], [0.5, 0.5, 0.5]])[: len(rows[index])]
        bad = replace(rows[index], positions=positions)
        assert (fault(bad) is not None) == (len(bad) > 2)
        other = StructureBlock()
        other.add_columns(structure_columns([*rows[:index], bad, *rows[index + 1 :]]))
        assert other.may_coincide() == (len(bad) > 2)
    assert not StructureBlock().may_coincide()


def test_other_scripts_are_left_to_the_look_at_each():
    row = replace(sound(2), structure_id="naïve", group_id="é")
    assert not all_sound(structure_columns([row]))
    assert fault(row) is None


def test_structures_without_energies_or_cells_are_taken():
    rows = [replace(sound(0), energy=None), replace(sound(1), pbc=False, cell=np.zeros((3, 3)))]
    block = StructureBlock()
    for row in rows:
        assert not all_sound(structure_columns([row]))
        block.add(row)
    assert block.rejected == []
    assert len(block.table()) == 2


def test_a_block_of_nothing_is_a_table_of_nothing():
    assert StructureBlock().table().equals(FIELDS.empty_table())
