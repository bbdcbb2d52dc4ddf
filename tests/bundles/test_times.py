"""Directories that were only touched get their time back; changed ones do not."""

import os
from pathlib import Path

import pytest
from toy_runs import Toy

from forceuq.provenance.times import restore_times

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
    assert restore_times(toy.results, "a") == [marker]
    assert marker.stat().st_mtime <= after
    assert restore_times(toy.results, "a") == []


@pytest.mark.parametrize("record", [False, True])
def test_a_changed_directory_or_record_does_not(toy: Toy, record: bool) -> None:
    marker = marked(toy, "free/seed0")
    changed = toy.results / ("a/records/fit/free_0.json" if record else "a/fits/free/seed0/id.parquet")
    content = changed.read_bytes()
    changed.write_bytes(content.replace(b"0.001", b"0.002") if record else b"fut")
    assert changed.read_bytes() != content
    before = marker.stat().st_mtime
    assert restore_times(toy.results, "a") == []
    assert marker.stat().st_mtime == before


def test_no_results_is_no_fault(tmp_path: Path) -> None:
    assert restore_times(tmp_path / "results", "a") == []
