"""Feature caches that training reads every epoch, copied to a node's own disk."""

import shutil
from types import SimpleNamespace

import pytest

from forceuq import scratch


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Return two caches that count as too large to be held."""
    monkeypatch.setattr(scratch, "HELD_BYTES", 10)
    folders = (tmp_path / "cache/one", tmp_path / "cache/two")
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "shard").write_bytes(folder.name.encode() * 4)
    (tmp_path / "disk").mkdir()
    return folders


def test_large_caches_are_copied_and_the_copies_removed(caches, tmp_path, monkeypatch):
    monkeypatch.setenv("JOB", "disk")
    monkeypatch.setenv("FORCEUQ_SCRATCH", f"{tmp_path}/$JOB")
    with scratch.near(caches, read_again=True) as near:
        assert all(tmp_path / "disk" in folder.parents for folder in near)
        assert [(folder / "shard").read_bytes() for folder in near] == [b"one" * 4, b"two" * 4]
    assert not any((tmp_path / "disk").iterdir())
    assert all((folder / "shard").exists() for folder in caches)


def test_copies_are_removed_after_a_failure(caches, tmp_path, monkeypatch):
    monkeypatch.setenv("FORCEUQ_SCRATCH", f"{tmp_path}/disk")
    with pytest.raises(SystemExit), scratch.near(caches, read_again=True):
        raise SystemExit(143)
    assert not any((tmp_path / "disk").iterdir())


def test_what_is_not_copied_is_read_where_it_is(caches, tmp_path, monkeypatch, caplog):
    def stays(read_again=True):
        with scratch.near(caches, read_again) as near:
            return near == caches and not any((tmp_path / "disk").iterdir())

    assert stays()  # no scratch at all
    monkeypatch.setenv("FORCEUQ_SCRATCH", f"{tmp_path}/disk")
    assert stays(read_again=False)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=30))
        assert stays()
        assert "GB free" in caplog.text
    with monkeypatch.context() as failing:
        failing.setattr(shutil, "copytree", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
        assert stays()
        assert "No space left on device: not used" in caplog.text
    monkeypatch.setenv("FORCEUQ_SCRATCH", f"{tmp_path}/$NO_SUCH_VARIABLE")
    assert stays()
    assert "not set in this job" in caplog.text
    monkeypatch.setattr(scratch, "HELD_BYTES", 1000)
    monkeypatch.setenv("FORCEUQ_SCRATCH", f"{tmp_path}/disk")
    assert stays()
