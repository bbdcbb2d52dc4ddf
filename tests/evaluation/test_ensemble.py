from dataclasses import replace

import numpy as np
import pytest

from forceuq.errors import DataError
from forceuq.methods.ensemble import Options, combine
from forceuq.predictions import VALIDATION_SPLIT, unpack_symmetric, write_predictions


@pytest.fixture
def members(tmp_path, block):
    """Files of four members that predict the same atoms, and their blocks."""
    rng = np.random.default_rng(3)
    base = block(70_000)
    blocks = []
    for index in range(4):
        floor, spread = (getattr(block(70_000, seed=index, kind="ensemble"), name) for name in ("floor", "spread"))
        mean = base.mean + rng.normal(scale=0.1, size=base.mean.shape)
        blocks.append(replace(base, mean=mean, floor=floor, spread=spread))
    paths = [tmp_path / f"{i}.parquet" for i in range(4)]
    for path, member in zip(paths, blocks, strict=True):
        write_predictions(path, [member], {"split": VALIDATION_SPLIT})
    return paths, blocks


def joined(blocks, name):
    return np.concatenate([getattr(block, name) for block in blocks])


def test_moments_are_those_of_samples_from_the_mixture(members):
    paths, blocks = members
    found = list(combine(paths, Options()))
    assert len(found) > 1
    atom = 69_000
    rng = np.random.default_rng(0)
    samples = np.concatenate(
        [
            rng.multivariate_normal(b.mean[atom], unpack_symmetric(b.floor[atom] + b.spread[atom]), 200_000)
            for b in blocks
        ]
    )
    covariance = unpack_symmetric(joined(found, "floor")[atom] + joined(found, "spread")[atom])
    np.testing.assert_allclose(joined(found, "mean")[atom], samples.mean(axis=0), atol=2e-3)
    np.testing.assert_allclose(covariance, np.cov(samples.T), atol=0.02 * np.abs(covariance).max())


def test_floor_is_the_noise_and_spread_the_disagreement(members):
    paths, blocks = members
    blocks = [replace(block, spread=0 * block.spread) for block in blocks]
    for path, member in zip(paths, blocks, strict=True):
        write_predictions(path, [member], {"split": VALIDATION_SPLIT})
    found = list(combine(paths, Options()))
    np.testing.assert_allclose(joined(found, "floor"), np.mean([b.floor for b in blocks], axis=0), rtol=1e-14)
    atom = 12
    means = np.stack([b.mean[atom] for b in blocks])
    np.testing.assert_allclose(
        unpack_symmetric(joined(found, "spread")[atom]), np.cov(means.T, bias=True), rtol=1e-10, atol=1e-15
    )
    for name in ("structure", "atom", "number", "target"):
        np.testing.assert_array_equal(joined(found, name), getattr(blocks[0], name))


def test_equal_members_do_not_disagree(members):
    paths, blocks = members
    found = list(combine([paths[1], paths[1]], Options()))
    np.testing.assert_array_equal(joined(found, "mean"), blocks[1].mean)
    np.testing.assert_array_equal(joined(found, "spread"), blocks[1].spread)


def test_the_order_of_the_members_does_not_matter(members):
    paths, _ = members
    one, other = list(combine(paths, Options())), list(combine(paths[::-1], Options()))
    for name in ("mean", "floor", "spread"):
        np.testing.assert_allclose(joined(one, name), joined(other, name), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["target", "structure"])
def test_members_of_other_atoms_are_named_with_the_row(members, name):
    paths, blocks = members
    values = getattr(blocks[2], name).copy()
    values[66_000] += 1
    write_predictions(paths[2], [replace(blocks[2], **{name: values})], {"split": VALIDATION_SPLIT})
    with pytest.raises(DataError, match=rf"2\.parquet: record 66000: '{name}' is not that of"):
        list(combine(paths, Options()))


def test_members_of_other_lengths_are_named(members, block):
    paths, _ = members
    write_predictions(paths[3], [block(50)], {"split": VALIDATION_SPLIT})
    with pytest.raises(DataError, match=r"3\.parquet: .*another number of atoms"):
        list(combine(paths, Options()))


def test_one_member_is_no_ensemble(members):
    with pytest.raises(DataError, match="at least two"):
        list(combine(members[0][:1], Options()))
