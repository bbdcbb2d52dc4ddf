"""Relaxations of ternary alloys labelled with effective-medium theory, in the layout of sAlex: a tar of ``*.aselmdb``.

Ternaries, so that no material is one of the binary and pure systems that ``forceuq-small`` or the demonstration's
MPtrj-like data set know.
"""

import io
import tarfile
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from forceuq.data.generators.alloys import AlloyFrame, AlloySystem, sample_alloy, ternary_systems
from forceuq.data.generators.molecules import derived_seed
from forceuq.files import whole_file


class Options(BaseModel):
    """What is relaxed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    materials: int = Field(default=10, ge=1, description="Decorated cells, each of three of the seven EMT metals.")
    frames: int = Field(default=4, ge=1, description="Frames of each relaxation, at most.")
    steps: int = Field(default=120, ge=1, description="Steps of each relaxation, at most; it need not end relaxed.")
    databases: int = Field(default=2, ge=1, description="Databases that the materials are spread over.")
    seed: int = Field(default=0, ge=0, description="Of decorations, strains and rattles.")


def generate(output: Path, options: Options) -> None:
    """Write the archive; the same options give the same bytes on the same machine.

    Raises:
        DataError: EMT gave a non-finite energy (the system is named).
    """
    from tqdm import tqdm

    systems = ternary_systems(options.materials, options.seed)
    with whole_file(output) as temporary, tarfile.open(temporary, "w") as archive:
        for index in range(options.databases):
            own = tqdm(systems[index :: options.databases], desc="EMT", unit="alloy", mininterval=2)
            rows = (
                (system, frame)
                for system in own
                for frame in sample_alloy(system, options.frames, options.seed, steps=options.steps).frames
            )
            content = _database(rows)
            # TarInfo's own defaults (no owner, time 0) make the bytes the same every time.
            member = tarfile.TarInfo(f"val/data.{index:04d}.aselmdb")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _database(rows: Iterable[tuple[AlloySystem, AlloyFrame]]) -> bytes:
    """Return an ASE database on LMDB as ase-db-backends writes it, but for its time stamps and random ids."""
    import lmdb
    from ase.io.jsonio import encode

    def packed(value: Any) -> bytes:
        return zlib.compress(encode(value).encode())

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data.aselmdb")
        with lmdb.open(str(path), subdir=False, map_size=2**28) as environment, environment.begin(write=True) as txn:
            number = 0
            for number, row in enumerate(rows, start=1):
                txn.put(str(number).encode(), packed(_row(*row, number)))
            txn.put(b"nextid", packed(number + 1))
        return path.read_bytes()


def _row(system: AlloySystem, frame: AlloyFrame, number: int) -> dict[str, Any]:
    return {
        "numbers": frame.numbers,
        "positions": frame.positions,
        "cell": frame.cell,
        "pbc": np.array([True, True, True]),
        "unique_id": f"{derived_seed(number, system.name):032x}",
        "ctime": 0.0,
        "mtime": 0.0,
        "user": None,
        "calculator": "unknown",
        "calculator_parameters": {},
        "energy": frame.energy,
        "forces": frame.forces,
        "stress": frame.stress.reshape(-1)[[0, 4, 8, 5, 2, 1]],  # Voigt's order
        "key_value_pairs": {},
        "data": {"sid": system.name},
    }
