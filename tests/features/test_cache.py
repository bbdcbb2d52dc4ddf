import functools
import json
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forceuq.errors import DataError
from forceuq.features import writer
from forceuq.features.cache import FeatureMetadata, FeatureReader, FeatureWriter
from forceuq.features.layout import ROW_GROUP_ATOMS, cuts

META = FeatureMetadata(width=5, backbone="orb", backbone_version="1", weights_sha256="ab", dataset="set", part="train")


def atoms_of(sizes, seed=0, width=5):
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    return {
        "structure_rows": np.repeat(3 * np.arange(len(sizes)), sizes),
        "atoms": np.concatenate([np.arange(size) for size in sizes]),
        "numbers": rng.integers(1, 90, n),
        "forces": rng.normal(size=(n, 3)),
        "zbl": rng.normal(size=(n, 3)),
        "features": rng.normal(size=(n, width)).astype(np.float32),
    }


def write(directory, data, sizes, batch=None, **options):
    """Write in calls of ``batch`` structures each."""
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    with FeatureWriter(directory, options.pop("metadata", META), **options) as writer:
        for i in range(0, len(sizes), batch or len(sizes)):
            part = slice(bounds[i], bounds[min(i + (batch or len(sizes)), len(sizes))])
            writer.add(**{name: values[part] for name, values in data.items()})
    return directory


@pytest.fixture
def small_groups(monkeypatch):
    monkeypatch.setattr(writer, "ROW_GROUP_ATOMS", 50)


SIZES = [7, 1, 30, 60, 12, 5, 5, 40, 3, 9]


@pytest.fixture
def written(tmp_path, small_groups):
    data = atoms_of(SIZES)
    return write(tmp_path / "a", data, SIZES, atoms_per_file=100), data


def test_what_is_written_is_read(written):
    directory, data = written
    reader = FeatureReader([directory])
    assert (reader.n_atoms, reader.n_structures) == (sum(SIZES), len(SIZES))
    assert reader.metadata == META
    assert len(list(directory.glob("atoms-*.parquet"))) > 1
    blocks = list(reader.blocks())
    assert reader.n_row_groups == len(blocks) > 3
    names = ("structure", "atom", "number", "force", "zbl", "features")
    for name, key in zip(names, data, strict=True):
        np.testing.assert_array_equal(np.concatenate([getattr(b, name) for b in blocks]), data[key])
    assert {b.features.dtype for b in blocks} == {np.dtype("<f4")}
    assert all(b.structure.dtype == np.int64 and b.force.dtype == np.float64 for b in blocks)


def test_features_are_views_of_what_was_read(written):
    directory, _ = written
    block = next(iter(FeatureReader([directory]).blocks()))
    assert not block.features.flags.owndata
    assert np.shares_memory(block.features, block.rows(2, 5).features)


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("sizes", [[ROW_GROUP_ATOMS, 3], [ROW_GROUP_ATOMS + 1], [45_000, 2]], ids=str)
def test_features_are_those_that_arrow_decodes(tmp_path, sizes, precision):
    """Row groups that are one page, and larger ones, which Arrow may write as several."""
    write(tmp_path, atoms_of(sizes), sizes, metadata=replace(META, precision=precision))
    kind = {"float32": "<f4", "float16": "<f2"}[precision]
    groups = [
        np.frombuffer(b"".join(group.column("features").to_pylist()), kind).reshape(-1, META.width)
        for path in sorted(tmp_path.glob("*.parquet"))
        for group in map(pq.ParquetFile(path).read_row_group, range(pq.read_metadata(path).num_row_groups))
    ]
    blocks = list(FeatureReader([tmp_path]).blocks())
    assert [len(block) for block in blocks] == sizes
    for block, features in zip(blocks, groups, strict=True):
        assert block.features.dtype == np.float32
        np.testing.assert_array_equal(block.features, features)


def test_features_that_are_not_one_page_are_refused(written, monkeypatch):
    """As a writer with another layout would leave them: never other bytes than the features'."""
    directory, data = written
    monkeypatch.setattr(writer, "PAGE_BYTES", 64)
    monkeypatch.setattr(writer.pq, "ParquetWriter", functools.partial(pq.ParquetWriter, write_batch_size=1))
    write(directory, data, SIZES)
    with pytest.raises(DataError, match="not one page"):
        list(FeatureReader([directory]).blocks())


@pytest.mark.parametrize("max_atoms", [1, 8, 31, 1000])
def test_blocks_end_where_structures_end(written, max_atoms):
    directory, data = written
    seen = []
    for block in FeatureReader([directory]).blocks(max_atoms):
        assert len(block) <= max_atoms or len(block.starts) == 2
        assert block.atom[0] == 0
        seen.append(block.structure)
    np.testing.assert_array_equal(np.concatenate(seen), data["structure_rows"])
    whole = [set(s) for s in seen]
    assert sum(map(len, whole)) == len(set().union(*whole))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(1, 40))
def test_cuts_cover_everything_at_structure_boundaries(sizes, most):
    starts = np.concatenate([[0], np.cumsum(sizes)])
    found = cuts(starts, most)
    assert (found[0], found[-1]) == (0, sum(sizes))
    assert set(found) <= set(starts.tolist())
    for start, stop in pairwise(found):
        held = [size for size, at in zip(sizes, starts, strict=False) if start <= at < stop]
        assert start < stop
        assert stop - start <= most or len(held) == 1


def test_files_do_not_depend_on_the_batches_they_came_in(written, tmp_path):
    directory, data = written
    other = write(tmp_path / "b", data, SIZES, batch=3, atoms_per_file=100)
    names = sorted(path.name for path in directory.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        assert (directory / name).read_bytes() == (other / name).read_bytes()


def test_row_groups_in_another_order(written):
    directory, _ = written
    reader = FeatureReader([directory])
    forward = [b.structure.tolist() for b in reader.blocks()]
    order = list(range(reader.n_row_groups))[::-1]
    assert [b.structure.tolist() for b in reader.blocks(order=order)] == forward[::-1]


def test_where_the_system_cannot_be_asked_to_read_ahead(written, monkeypatch):
    directory, data = written
    monkeypatch.delattr(os, "posix_fadvise")
    np.testing.assert_array_equal(
        np.concatenate([block.features for block in FeatureReader([directory]).blocks()]), data["features"]
    )


def test_parts_are_read_one_after_another(written, tmp_path):
    directory, _ = written
    other = write(tmp_path / "b", atoms_of([4, 4], seed=1), [4, 4])
    reader = FeatureReader([other, directory])
    assert reader.n_atoms == 8 + sum(SIZES)
    parts = np.concatenate([np.full(len(b), b.part_index) for b in reader.blocks()])
    np.testing.assert_array_equal(parts, [0] * 8 + [1] * sum(SIZES))


def test_caches_of_different_backbones_do_not_mix(written, tmp_path):
    directory, _ = written
    meta = FeatureMetadata(width=5, backbone="orb", backbone_version="1", weights_sha256="other")
    other = write(tmp_path / "b", atoms_of([4]), [4], metadata=meta)
    with pytest.raises(DataError, match="do not mix"):
        FeatureReader([directory, other])


def shard(directory, index=0):
    return sorted(directory.glob("atoms-*.parquet"))[index]


def test_truncated_shard_is_named(written):
    directory, _ = written
    path = shard(directory, 1)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"atoms-00001.*truncated"):
        list(FeatureReader([directory]).blocks())


@settings(max_examples=60, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused(tmp_path_factory, where, bit):
    """Whatever bit of a file is flipped: an error that names it."""
    directory = tmp_path_factory.mktemp("cache")
    write(directory, atoms_of([6, 5, 4]), [6, 5, 4])
    path = shard(directory)
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    path.write_bytes(content)
    reader = FeatureReader([directory])
    with pytest.raises(DataError, match="atoms-00000.*altered"):
        list(reader.blocks())
    with pytest.raises(DataError, match="altered"):
        reader.verify()


def test_an_altered_value_is_refused(written):
    directory, data = written
    path = shard(directory)
    content = path.read_bytes()
    value = data["features"][0].tobytes()
    assert value in content
    path.write_bytes(content.replace(value, data["features"][1].tobytes(), 1))
    with pytest.raises(DataError, match=r"atoms-00000.*altered"):
        list(FeatureReader([directory]).blocks())


def test_missing_shard_is_named(written):
    directory, _ = written
    shard(directory, 1).unlink()
    with pytest.raises(DataError, match="atoms-00001"):
        list(FeatureReader([directory]).blocks())


def test_swapped_shards_are_refused(written):
    directory, _ = written
    first, second = shard(directory, 0), shard(directory, 1)
    shutil.copy(second, first)
    with pytest.raises(DataError, match="atoms-00000"):
        list(FeatureReader([directory]).blocks())


def test_a_cache_without_manifest_is_not_finished(tmp_path):
    with pytest.raises(DataError, match="not finished"):
        FeatureReader([tmp_path])
    with pytest.raises(DataError, match="no feature cache"):
        FeatureReader([])


@pytest.mark.parametrize("change", [{"version": 1}, {"schema": "structures"}, {"metadata": {"width": 5}}])
def test_another_schema_is_refused(written, change):
    directory, _ = written
    path = directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match="manifest"):
        FeatureReader([directory])


def test_an_interrupted_write_leaves_no_manifest_and_can_be_repeated(written):
    directory, data = written

    def interrupted():
        with FeatureWriter(directory, META, atoms_per_file=30) as writer:
            writer.add(**{name: values[:68] for name, values in data.items()})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not (directory / "manifest.json").exists()
    assert not list(directory.glob(".*.part*"))
    write(directory, data, SIZES, atoms_per_file=1000)
    assert len(list(directory.glob("atoms-*"))) == 1
    assert sum(len(b) for b in FeatureReader([directory]).blocks()) == sum(SIZES)


def test_a_killed_write_is_repeated_to_the_same_bytes(written):
    directory, data = written
    whole = {path.name: path.read_bytes() for path in directory.iterdir()}

    def killed():
        with FeatureWriter(directory, META, atoms_per_file=100, row_group_atoms=50) as writer:
            writer.add(**{name: values[:163] for name, values in data.items()})
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list(directory.glob(".atoms-*.part.parquet"))
    with pytest.raises(DataError, match="not finished"):
        FeatureReader([directory])
    write(directory, data, SIZES, atoms_per_file=100)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["features"].__setitem__((9, 2), np.nan), "record 6.*feature that is not finite"),
        (lambda d: d["forces"].__setitem__((0, 1), np.inf), "record 0.*force that is not finite"),
        (lambda d: d["zbl"].__setitem__((0, 1), -np.inf), "ZBL force"),
        (lambda d: d["atoms"].__setitem__(1, 5), "atom indices"),
        (lambda d: d["structure_rows"].__setitem__(slice(0, 7), 99), "increasing order"),
        (lambda d: d.__setitem__("forces", d["forces"][:, :2]), "forces have shape"),
        (lambda d: d.__setitem__("features", d["features"][:, :2]), "features have shape"),
    ],
)
def test_bad_input_is_refused(tmp_path, change, message):
    data = atoms_of(SIZES)
    change(data)
    with pytest.raises(DataError, match=message):
        write(tmp_path / "a", data, SIZES)
    assert not (tmp_path / "a" / "manifest.json").exists()


def test_a_feature_too_large_for_half_precision_is_refused(tmp_path):
    data = atoms_of(SIZES)
    data["features"][9, 2] = 1e5
    write(tmp_path / "single", data, SIZES)
    with pytest.raises(DataError, match="record 6.*not finite in float16"):
        write(tmp_path / "half", data, SIZES, metadata=replace(META, precision="float16"))


def test_a_structure_in_two_calls_is_refused(tmp_path):
    data = atoms_of([6])
    with FeatureWriter(tmp_path, META) as writer:
        writer.add(**{name: values[:3] for name, values in data.items()})
        with pytest.raises(DataError, match="whole"):
            writer.add(**{name: values[3:] for name, values in data.items()})


def test_a_part_without_structures(tmp_path):
    with FeatureWriter(tmp_path, META):
        pass
    reader = FeatureReader([tmp_path])
    assert (reader.n_atoms, list(reader.blocks())) == (0, [])
