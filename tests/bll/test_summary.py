"""Statistics of cached features: the same bits for any number of threads, shards and orders."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from test_bll_method import NODE, bll, data, fit, joined, write_cache  # noqa: F401 - data is a fixture

from forceuq.backbones.head import ForceHead
from forceuq.bll.statistics import accumulate
from forceuq.bll.summary import merge_shards, summarise, summarise_shard
from forceuq.errors import DataError
from forceuq.features.cache import FeatureMetadata, FeatureReader, FeatureWriter


def in_shards(folder, source, bounds, row_group=30):
    """Write a cache again, in shards that begin at these structures."""
    blocks = list(FeatureReader([source]).blocks())
    names = ("structure", "atom", "number", "force", "zbl", "features")
    values = [np.concatenate([getattr(block, name) for block in blocks]) for name in names]
    folders = []
    for shard, (low, high) in enumerate(pairwise([*bounds, int(values[0][-1]) + 1])):
        folders.append(folder / f"{shard}-of-{len(bounds)}")
        metadata = FeatureMetadata(NODE, "orb", "1", "x", shard=shard, shards=len(bounds))
        inside = (values[0] >= low) & (values[0] < high)
        with FeatureWriter(folders[-1], metadata, row_group_atoms=row_group) as writer:
            writer.add(*(value[inside] for value in values))
    return folders


@pytest.fixture
def part(data, tmp_path):  # noqa: F811
    """The training data in row groups of six structures, in one shard and in three."""
    one = in_shards(tmp_path / "one", data.train[0], [0])
    return replace(data, train=tuple(one)), in_shards(tmp_path / "three", data.train[0], [0, 60, 84])


def bits(statistics):
    return [getattr(statistics, name).tobytes() for name in ("gram", "cross", "target")]


def test_any_number_of_threads_and_shards(part):
    data, three = part  # noqa: F811
    head = ForceHead.load(data.head)
    reader = FeatureReader(data.train)
    assert reader.n_row_groups > 10
    blocks = [(head.penultimate(block.features), block.force - block.zbl) for block in reader.blocks()]
    expected = accumulate(blocks, 10)
    for folders in (data.train, three):
        for threads in (1, 2, 5):
            assert bits(summarise(FeatureReader(folders), head, threads)) == bits(expected)


def test_a_fit_from_statistics_of_shards_is_the_fit(part, tmp_path):
    data, three = part  # noqa: F811
    assert bll.head_before_fit(bll.Options(projection="mse"), data.head, None) is None
    files = []
    for folder in three:
        files.append(tmp_path / f"{folder.name}.safetensors")
        head = bll.head_before_fit(bll.Options(projection="pretrained"), data.head, None)
        bll.summarise_shard(folder, head, files[-1])
    fit(data, tmp_path, "direct", projection="pretrained")
    reduced = fit(
        replace(data, train=tuple(three), statistics=tuple(files)), tmp_path, "reduced", projection="pretrained"
    )
    assert reduced.report["statistics"] == {"shards": 3}
    for name in ("posterior", "projection"):
        one, other = (tmp_path / d / f"{name}.safetensors" for d in ("direct", "reduced"))
        assert one.read_bytes() == other.read_bytes()


def test_a_fit_that_starts_from_another_likewise(part, tmp_path):
    data, three = part  # noqa: F811
    fit(data, tmp_path, "first", projection="mse")
    start = tmp_path / "first"
    head = bll.head_before_fit(bll.Options(projection="mse"), data.head, start)
    files = [tmp_path / f"{folder.name}.safetensors" for folder in three]
    for folder, file in zip(three, files, strict=True):
        bll.summarise_shard(folder, head, file)
    direct = fit(data, tmp_path, "direct", starts_from=start, projection="mse")
    given = replace(data, train=tuple(three), statistics=tuple(files))
    reduced = fit(given, tmp_path, "reduced", starts_from=start, projection="mse")
    assert (direct.posterior.mean == reduced.posterior.mean).all()


def test_training_does_not_depend_on_the_shards(part, tmp_path):
    """Not even where the features do not fit into memory: the row groups are shuffled, and they are the same."""
    data, three = part  # noqa: F811
    for projection in ("mse", "nlml"):
        one = fit(data, tmp_path, f"one-{projection}", projection=projection)
        other = fit(replace(data, train=tuple(three)), tmp_path, f"other-{projection}", projection=projection)
        assert (one.posterior.mean == other.posterior.mean).all()
        blocks = [list(fitted.predict(data.validation)) for fitted in (one, other)]
        for name in ("mean", "floor", "spread"):
            np.testing.assert_array_equal(joined(blocks[0], name), joined(blocks[1], name))


def test_statistics_of_something_else_are_named(part, tmp_path):
    data, three = part  # noqa: F811
    files = [tmp_path / f"{folder.name}.safetensors" for folder in three]
    for folder, file in zip(three, files, strict=True):
        summarise_shard(folder, data.head, file)
    with pytest.raises(DataError, match=r"1-of-3\.safetensors: is of other features"):
        merge_shards([files[1], files[0], files[2]], three, data.head)
    with pytest.raises(DataError, match="statistics of 2 shards"):
        merge_shards(files[:2], three, data.head)
    head = ForceHead.load(data.head)
    replace(head, out_bias=head.out_bias + 1).save(tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=r"0-of-3\.safetensors: is of other"):
        merge_shards(files, three, tmp_path / "other.safetensors")
    whole = files[2].read_bytes()
    for where in np.random.default_rng(0).integers(0, len(whole), 40):
        content = bytearray(whole)
        content[where] ^= 4
        files[2].write_bytes(content)
        with pytest.raises(DataError, match=r"2-of-3\.safetensors"):
            merge_shards(files, three, data.head)
