"""How a part is cut into shards and passes, and that nothing depends on their number."""

import shutil
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cache import META, atoms_of

from forceuq.errors import ConfigurationError, DataError
from forceuq.features import shards
from forceuq.features.cache import FeatureReader, FeatureWriter
from forceuq.features.layout import FeatureMetadata, cuts

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=120)


@settings(deadline=None)
@given(sizes=SIZES, number=st.integers(1, 9))
def test_shards_are_whole_row_groups_balanced_by_atoms(sizes, number):
    atoms = np.array(sizes)
    starts = np.concatenate([[0], np.cumsum(atoms)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_LEAST_ROW_GROUP_ATOMS", 100)
        bounds = shards.shard_bounds(atoms, number)
    assert (len(bounds), bounds[0], bounds[-1]) == (number + 1, 0, len(sizes))
    assert (np.diff(bounds) >= 0).all()
    groups = cuts(starts, 100)
    assert set(starts[bounds].tolist()) <= set(groups)
    # Each shard ends at the row group's end that is nearest to its share.
    for index, end in enumerate(starts[bounds[1:-1]], start=1):
        share = starts[-1] * index / number
        assert abs(end - share) == min(abs(group - share) for group in groups)


def test_many_row_groups_make_even_shards():
    atoms = np.random.default_rng(0).integers(2, 200, 60_000)
    bounds = shards.shard_bounds(atoms, 64)
    held = np.array([atoms[low:high].sum() for low, high in pairwise(bounds)])
    assert held.max() <= held.mean() + shards.row_group_atoms(int(atoms.sum()))
    assert held.min() >= held.mean() - shards.row_group_atoms(int(atoms.sum()))


@given(sizes=SIZES, max_atoms=st.integers(1, 150))
def test_passes_are_bounded_even_and_within_row_groups(sizes, max_atoms):
    atoms = np.array(sizes)
    starts = np.concatenate([[0], np.cumsum(atoms)])
    found = shards.passes(atoms, 200, max_atoms)
    assert [edge for pair in found for edge in pair][1:-1:2] == [low for low, _ in found[1:]]
    assert (found[0][0], found[-1][1]) == (0, len(sizes))
    assert set(cuts(starts, 200)) <= {starts[low] for low, _ in found} | {starts[-1]}
    for low, high in found:
        assert low < high
        assert atoms[low:high].sum() <= max_atoms or high == low + 1


def test_passes_have_no_remnants():
    found = shards.passes(np.full(500, 30), 15_000, 8192)
    assert found == [(0, 250), (250, 500)]


def test_a_shard_that_cannot_be_is_refused():
    for shard, number in ((3, 3), (-1, 2), (0, 0)):
        with pytest.raises(ConfigurationError, match=f"shard {shard} of {number}"):
            shards.check_shard(shard, number)


PART = [7, 1, 30, 60, 12, 5, 5, 40, 3, 9, 22, 14]


def written(folder, number, part="train"):
    """Write a part in shards; return their folders."""
    data = atoms_of(PART)
    starts = np.concatenate([[0], np.cumsum(PART)])
    bounds = shards.shard_bounds(np.array(PART), number)
    folders = []
    for shard, (low, high) in enumerate(pairwise(bounds)):
        metadata = FeatureMetadata(**{**vars(META), "part": part, "shard": shard, "shards": number})
        folders.append(folder / part / f"{shard}-of-{number}")
        with FeatureWriter(folders[-1], metadata, atoms_per_file=80, row_group_atoms=40) as writer:
            if low < high:
                writer.add(**{name: values[starts[low] : starts[high]] for name, values in data.items()})
    return folders


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(shards, "_LEAST_ROW_GROUP_ATOMS", 40)


@pytest.mark.parametrize("number", [2, 3, 30])
def test_a_part_in_shards_is_read_as_one(tmp_path, small, number):
    one = FeatureReader(written(tmp_path / "one", 1))
    many = FeatureReader(written(tmp_path / "many", number))
    assert many.metadata == one.metadata
    assert (many.n_atoms, many.n_structures, many.n_row_groups) == (one.n_atoms, one.n_structures, one.n_row_groups)
    for a, b in zip(one.blocks(), many.blocks(), strict=True):
        assert (a.structure.tolist(), a.part_index) == (b.structure.tolist(), b.part_index)
        np.testing.assert_array_equal(a.features, b.features)
        np.testing.assert_array_equal(a.force, b.force)


def test_parts_are_counted_not_shards(tmp_path, small):
    folders = [*written(tmp_path, 3), *written(tmp_path, 2, "other"), *written(tmp_path, 1, "third")]
    reader = FeatureReader(folders)
    parts = [block.part_index for block in reader.blocks()]
    assert sorted(set(parts)) == [0, 1, 2]
    assert parts == sorted(parts)
    assert reader.metadata.part == ""


def test_a_missing_or_misplaced_shard_is_named(tmp_path, small):
    folders = written(tmp_path, 3)
    other = written(tmp_path, 3, "other")
    for wrong, named in (
        (folders[1:], "1-of-3"),
        (folders[:2], "1-of-3"),
        ([folders[0], folders[2]], "2-of-3"),
        ([folders[0], folders[2], folders[1]], "2-of-3"),
        ([folders[0], other[1], folders[2]], "other/1-of-3"),
        ([*folders[:2], *other], "other/0-of-3"),
    ):
        with pytest.raises(DataError, match=named):
            FeatureReader(wrong)
    assert FeatureReader([folders[1]], whole_parts=False).n_atoms > 0


def test_swapped_shards_are_named(tmp_path, small):
    folders = written(tmp_path, 3)
    for shard in (0, 1):
        shutil.move(folders[shard], tmp_path / f"moved{shard}")
    shutil.move(tmp_path / "moved0", folders[1])
    shutil.move(tmp_path / "moved1", folders[0])
    with pytest.raises(DataError, match="0-of-3"):
        FeatureReader(folders)
    # Files swapped under their manifests.
    folders = written(tmp_path / "again", 3)
    first, second = (sorted(folder.glob("atoms-*"))[0] for folder in folders[:2])
    shutil.move(first, tmp_path / "file")
    shutil.move(second, first)
    shutil.move(tmp_path / "file", second)
    with pytest.raises(DataError, match="0-of-3/atoms-00000"):
        list(FeatureReader(folders).blocks())
