"""Touched directories get their time back, changed ones do not; what was changed and looks old is renewed."""

import os
import shutil
from pathlib import Path

import pytest
from toy_runs import Toy

from forceuq.provenance import times
from forceuq.provenance.digests import Stat
from forceuq.provenance.times import present_records, renew_times, restore_times

MARKER = ".snakemake_timestamp"


def marked(toy: Toy, name: str) -> Path:
    """Return the marker of a fit, set long after everything that was made from it."""
    marker = toy.results / f"a/fits/{name}/{MARKER}"
    marker.touch()
    os.utime(marker, (marker.stat().st_mtime + 1e6,) * 2)
    return marker


def test_a_touched_directory_gets_its_time_back(toy: Toy) -> None:
    marker = marked(toy, "free/seed0")
    (toy.results / "a/fits/free/seed0/id.parquet").touch()
    after = (toy.results / "a/predictions/free/seed0/id.parquet").stat().st_mtime
    assert restore_times(toy.results, present_records(toy.results, "a")) == [marker]
    assert marker.stat().st_mtime <= after
    assert restore_times(toy.results, present_records(toy.results, "a")) == []


@pytest.mark.parametrize("record", [False, True])
def test_a_changed_directory_or_record_does_not(toy: Toy, record: bool) -> None:
    marker = marked(toy, "free/seed0")
    changed = toy.results / ("a/records/fit/free_0.json" if record else "a/fits/free/seed0/id.parquet")
    content = changed.read_bytes()
    changed.write_bytes(content.replace(b"0.001", b"0.002") if record else b"fut")
    assert changed.read_bytes() != content
    before = marker.stat().st_mtime
    assert restore_times(toy.results, present_records(toy.results, "a")) == []
    assert marker.stat().st_mtime == before


def test_no_results_is_no_fault(tmp_path: Path) -> None:
    assert restore_times(tmp_path / "results", present_records(tmp_path / "results", "a")) == []


def renewed(results: Path) -> list[str]:
    """Return what is given the present time, by its name in the results."""
    return [path.relative_to(results).as_posix() for path in renew_times(results, present_records(results, "a"))]


def other_content(path: Path, keep_time: bool = True) -> None:
    """Change a byte in place; size and inode stay, and so does the time stamp."""
    state, content = path.stat(), path.read_bytes()
    with path.open("r+b") as handle:
        handle.write(bytes([content[0] ^ 1]))
    if keep_time:
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (path.stat().st_ino, path.stat().st_size) == (state.st_ino, state.st_size)


def aged(toy: Toy) -> None:
    """Make all results older than the jobs that took them, as they are where jobs take more than an instant."""
    for path in sorted(toy.results.rglob("*")):
        if path.is_file():
            os.utime(path, (1e9, 1e9))
    for directory in (path.parent for path in toy.results.rglob("a/fits/**/*.parquet")):
        (directory / MARKER).touch()
        os.utime(directory / MARKER, (1e9, 1e9))


def test_other_content_under_an_old_time_stamp_is_renewed(toy: Toy) -> None:
    aged(toy)
    assert renewed(toy.results) == []
    raw = next(toy.results.glob("cache/datasets/*/raw"))
    other_content(raw)
    before = raw.stat().st_mtime
    assert renewed(toy.results) == [raw.relative_to(toy.results).as_posix()]
    assert raw.stat().st_mtime > before
    assert renewed(toy.results) == [], "it is newer now: the engine sees it by itself"


def test_a_directory_too(toy: Toy) -> None:
    aged(toy)
    other_content(toy.results / "a/fits/free/seed0/id.parquet")
    assert renewed(toy.results) == [f"a/fits/free/seed0/{MARKER}"]


def test_what_is_not_taken_by_any_job_or_is_damaged_or_gone_is_left(toy: Toy) -> None:
    aged(toy)
    record = toy.results / "a/records/fit/free_0.json"
    record.write_bytes(record.read_bytes()[:-20])
    other_content(toy.results / "a/fits/free/seed0/id.parquet")
    raw = next(toy.results.glob("cache/datasets/*/raw"))
    raw.unlink()
    assert renewed(toy.results) == []


def test_a_copy_is_hashed_once(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aged(toy)
    copied = tmp_path / "copied"
    shutil.copytree(toy.results, copied)
    hashed = []
    original = times.made_artefact
    monkeypatch.setattr(times, "made_artefact", lambda *given: hashed.append(given) or original(*given))
    assert renewed(copied) == []
    assert hashed
    first = len(hashed)
    assert renewed(copied) == []
    assert len(hashed) == first


def test_the_file_systems_own_time_tells_of_a_change(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    before = Stat.of(file)
    assert Stat.of(file) == before
    other_content(file)
    after = Stat.of(file)
    assert (after.size, after.mtime_ns, after.inode) == (before.size, before.mtime_ns, before.inode)
    assert after != before
