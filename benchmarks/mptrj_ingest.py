"""Reading MPtrj's JSON into structures, beside ``ijson`` alone on the same bytes, with the memory of all processes.

    python benchmarks/mptrj_ingest.py [gigabytes] [threads]

Writes files of an eighth, a quarter, a half and the whole of the size to a temporary folder: relaxations made by the
demo's generator, repeated to cells of MPtrj's 31 atoms on average, perturbed, printed as the published file is.
Each is read by ``ijson.kvitems`` that throws everything away (its first eighth) and by ``mptrj.convert``, which
writes the structures file. On a machine that others use, compare processor times: they share the cores alike.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from forceuq.data.generators.emt_mptrj import Options, generate

ATOMS = 31  # a frame of MPtrj: 49,295,660 / 1,580,395
FRAMES = 11  # a material: 1,580,395 / 146,000
POOL_BYTES = 48e6
POOL_ID = "pool"
IJSON = """
import sys, ijson
with open(sys.argv[1], "rb") as handle:
    for _ in ijson.kvitems(handle, "", use_float=True):
        pass
"""
CONVERT = """
import sys
from pathlib import Path
from forceuq.data.sources.mptrj import Options, convert
convert(Path(sys.argv[1]), Path(sys.argv[2]), Options(), threads=int(sys.argv[3]))
"""


@dataclass
class Measured:
    """What a command took: seconds, processor seconds of all its processes, and their resident memory over time."""

    wall: float
    processor: float
    resident: list[int]


def measure(*command: object) -> Measured:
    """Run a Python program in a process of its own, its memory and that of its children added up as it runs."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    job = psutil.Popen([sys.executable, "-c", *map(str, command)])
    resident: list[int] = []
    while True:
        try:
            job.wait(0.1)
            break
        except psutil.TimeoutExpired:
            resident.append(sum(_resident(process) for process in [job, *job.children(recursive=True)]))
    if job.returncode:
        raise subprocess.CalledProcessError(job.returncode, command)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Measured(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, resident)


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def perturbed(frames: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Return a material's frames in a longer cell, moved a little, rounded as VASP prints."""
    found, copies = {}, max(1, round(rng.exponential(ATOMS) / len(next(iter(frames.values()))["force"])))
    for step, record in enumerate(list(frames.values())[:FRAMES]):
        sites, matrix = record["structure"]["sites"], np.array(record["structure"]["lattice"]["matrix"])
        moved = []
        for copy in range(copies):
            for site in sites:
                xyz = np.array(site["xyz"]) + copy * matrix[0] + rng.normal(0, 0.01, 3)
                abc = (xyz @ np.linalg.inv(matrix) / [copies, 1, 1]).tolist()
                moved.append({**site, "abc": abc, "xyz": np.round(xyz, 8).tolist()})
        matrix[0] *= copies
        force = np.tile(record["force"], (copies, 1)) + rng.normal(0, 0.01, (len(moved), 3))
        found[f"{POOL_ID}-0-{step}"] = {
            **record,
            "structure": {"lattice": {"matrix": matrix.tolist()}, "sites": moved},
            "corrected_total_energy": record["corrected_total_energy"] * copies,
            "force": np.round(force, 8).tolist(),
            "mp_id": POOL_ID,
        }
    return found


def pool(folder: Path) -> list[bytes]:
    """Return the texts of materials that the files are made of."""
    generate(folder / "few", Options(pairs=(("Cu", "Au"), ("Al", "Ni")), materials_per_pair=4, frames=FRAMES))
    materials = list(json.loads((folder / "few").read_bytes()).values())
    rng, texts = np.random.default_rng(0), []
    while sum(map(len, texts)) < POOL_BYTES:
        texts.append(json.dumps(perturbed(materials[len(texts) % len(materials)], rng)).encode())
    return texts


def write(path: Path, texts: list[bytes], size: float) -> None:
    """Write materials, each time under new ids, until the file has a size in bytes."""
    with path.open("wb") as handle:
        for index, text in enumerate(_repeated(texts)):
            if handle.tell() >= size:
                break
            name = b"mp-%d" % index
            handle.write(b"%s%b: %b" % (b", " if index else b"{", b'"%b"' % name, text.replace(b"pool", name)))
        handle.write(b"}")


def _repeated(texts: list[bytes]) -> Iterator[bytes]:
    while True:
        yield from texts


def exponent(sizes: list[float], values: list[float]) -> float:
    """Return the slope of a line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def main() -> None:
    gigabytes, threads = (float(value) for value in [*sys.argv[1:], *["2", "2"][len(sys.argv) - 1 :]])
    sizes, runs = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = pool(folder)
        print(f"{psutil.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before; {threads:.0f} threads for convert")
        for share in (8, 4, 2, 1):
            raw = folder / "raw"
            write(raw, texts, gigabytes * 1e9 / share)
            sizes.append(raw.stat().st_size / 1e9)
            if share == 8:
                alone = [measure(IJSON, raw)]
            runs.append(measure(CONVERT, raw, folder / "structures.parquet", int(threads)))
            print(
                f"convert  {sizes[-1]:6.3f} GB {runs[-1].wall:7.1f} s {runs[-1].processor:7.1f} s processor"
                f" {1e3 * sizes[-1] / runs[-1].wall:6.1f} MB/s   peak of all processes"
                f" {max(runs[-1].resident) / 2**20:5.0f} MiB",
                flush=True,
            )
        write(raw, texts, gigabytes * 1e9 / 8)
        alone.append(measure(IJSON, raw))
        for run in alone:
            print(
                f"ijson    {sizes[0]:6.3f} GB {run.wall:7.1f} s {run.processor:7.1f} s processor"
                f" {1e3 * sizes[0] / run.wall:6.1f} MB/s"
            )
    last = runs[-1]
    curve = [f"{part.max() / 2**20:.0f}" for part in np.array_split(np.array(last.resident), 10)]
    wall, processor = (min(getattr(run, field) for run in alone) / sizes[0] for field in ("wall", "processor"))
    print(f"resident memory over the last run, MiB, largest in each tenth: {' '.join(curve)}")
    print(f"throughput, convert / ijson                      {wall * sizes[-1] / last.wall:6.2f}")
    print(f"the same, if each had whole cores to itself      {processor * sizes[-1] / last.processor * threads:6.2f}")
    print(f"load at the end {os.getloadavg()[0]:.1f}; growth with the file's size, as its power:")
    print(f"  processor time {exponent(sizes, [run.processor for run in runs]):.2f}", end=", ")
    print(f"memory {exponent(sizes, [max(run.resident) for run in runs]):.2f}")


if __name__ == "__main__":
    main()
