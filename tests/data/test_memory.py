"""Peak memory does not grow with the data: each size in a process of its own."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from forceuq.features.cache import FeatureMetadata, FeatureWriter

# VmHWM, not ru_maxrss: that one remembers the process that started this one.
PEAK = """
import sys
from pathlib import Path
{work}
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""
MPTRJ = """
from forceuq.data.sources.mptrj import Options, convert
convert(Path(sys.argv[1]), Path(sys.argv[2]), Options())
"""
TM23 = """
from forceuq.data.sources.tm23 import Options, convert
convert(Path(sys.argv[1]), Path(sys.argv[2]), Options())
"""
STATISTICS = """
from forceuq.bll.statistics import accumulate
from forceuq.features.cache import FeatureReader
total = accumulate(((b.features, b.force) for b in FeatureReader([Path(sys.argv[1])]).blocks()), 128, 3)
assert total.n == int(sys.argv[2])
"""
# Shuffled batches out of a pool that holds a tenth of the smaller cache.
BATCHES = """
from forceuq.bll.batches import Batches, Standardisation
from forceuq.features.cache import FeatureReader
reader = FeatureReader([Path(sys.argv[1])])
batches = Batches(reader, Standardisation.of(reader), 64, 3 * 2**20)
assert sum(len(batch.y) for batch in batches.epoch(0, 1)) == int(sys.argv[2])
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")


def peak_mib(work: str, *arguments: object) -> float:
    """Return the peak resident memory of some work in a fresh process."""
    command = [sys.executable, "-c", PEAK.format(work=work), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) / 1024


def write_mptrj(path: Path, frames: int) -> None:
    sites = [{"species": [{"element": "Na", "occu": 1}], "xyz": [i, 0.5, 0]} for i in range(40)]
    frame = {
        "structure": {"lattice": {"matrix": [[40, 0, 0], [0, 5, 0], [0, 0, 6]]}, "sites": sites},
        "corrected_total_energy": -80.0,
        "energy_per_atom": -2.0,
        "e_per_atom_relaxed": -2.1,
        "force": [[0.1, 0.0, -0.2]] * 40,
    }
    with path.open("w") as handle:
        for i in range(frames):
            text = json.dumps({f"mp-{i}-0-0": {**frame, "mp_id": f"mp-{i}"}})
            handle.write(f'{"{" if i == 0 else ", "}"mp-{i}": {text}')
        handle.write("}")


def test_mptrj_is_streamed(tmp_path):
    peaks = []
    for frames in (6000, 20_000):
        write_mptrj(tmp_path / "raw.json", frames)
        peaks.append(peak_mib(MPTRJ, tmp_path / "raw.json", tmp_path / "structures.parquet"))
    size = (tmp_path / "raw.json").stat().st_size / 2**20
    # Holding even the text of the additional frames would take two thirds of the file.
    assert peaks[1] - peaks[0] < size / 3, f"{peaks} MiB for a file of {size:.0f} MiB"


def write_tm23(path: Path, frames: int) -> int:
    """Write one metal's files, all frames in one of them; return their size in bytes, unpacked."""
    atoms = "".join(f"Cu {i}.00000000 0.50000000 0.00000000 0.10000000 0.00000000 -0.20000000\n" for i in range(40))
    lattice = 'Lattice="40 0 0 0 5 0 0 0 6" Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.0 pbc="T T T"'
    text = f"40\n{lattice}\n{atoms}"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in (f"Cu_{t}_nequip_{part}.xyz" for t in ("cold", "warm", "melt") for part in ("train", "test")):
            archive.writestr(f"folder/{name}", text * (frames if name == "Cu_warm_nequip_train.xyz" else 1))
    return len(text) * frames


def test_archives_of_extended_xyz_are_streamed(tmp_path):
    peaks = []
    for frames in (2500, 9000):
        size = write_tm23(tmp_path / "raw.zip", frames) / 2**20
        peaks.append(peak_mib(TM23, tmp_path / "raw.zip", tmp_path / "structures.parquet"))
    assert peaks[1] - peaks[0] < size / 3, f"{peaks} MiB for a member of {size:.0f} MiB"


def write_cache(directory: Path, atoms: int) -> float:
    """Write a cache of structures of 20 atoms in shards of 20,000 (one of which is mapped at a time); return MiB."""
    rng = np.random.default_rng(0)
    with FeatureWriter(directory, FeatureMetadata(128, "synthetic", "1", "none"), 20_000) as writer:
        for start in range(0, atoms, 20_000):
            index = np.arange(start, start + 20_000)
            force = rng.normal(size=(20_000, 3))
            features = rng.standard_normal((20_000, 128), dtype=np.float32)
            writer.add(index // 20, (index % 20).astype(np.int32), np.ones(20_000, int), force, 0 * force, features)
    return sum(path.stat().st_size for path in directory.iterdir()) / 2**20


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """Caches of two sizes, and by how many MiB they differ."""
    folder = tmp_path_factory.mktemp("caches")
    sizes = {atoms: write_cache(folder / str(atoms), atoms) for atoms in (60_000, 400_000)}
    return [(folder / str(atoms), atoms) for atoms in sizes], sizes[400_000] - sizes[60_000]


@pytest.mark.parametrize("work", [STATISTICS, BATCHES], ids=["statistics", "batches"])
def test_features_are_streamed(caches, work):
    given, difference = caches
    peaks = [peak_mib(work, *arguments) for arguments in given]
    assert peaks[1] - peaks[0] < difference / 4, f"{peaks} MiB for caches that differ by {difference:.0f} MiB"
