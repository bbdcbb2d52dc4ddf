"""Small molecules labelled with GFN2-xTB, in the layout of rMD17.

The archive holds ``rmd17/npz_data/rmd17_<molecule>.npz`` (kcal/mol, Å; ``old_indices``: the frame's place in the
trajectory) and ``rmd17/splits/index_{train,test}_0{1..5}.csv``. As in rMD17, frames are shuffled in time.
"""

import io
import tarfile
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from forceuq.data.generators.molecules import MoleculeFrames, derived_seed, sample_molecule
from forceuq.files import whole_file

KCAL_PER_MOL = 0.0433641153  # eV
_SPLITS = 5


class Options(BaseModel):
    """What is sampled."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    molecules: dict[str, str] = Field(
        default={
            "acetaldehyde": "CC=O",
            "methylamine": "CN",
            "methanol": "CO",
            "propene": "CC=C",
            "furan": "c1ccoc1",
            "acetamide": "CC(N)=O",
        },
        min_length=1,
        description="Name -> SMILES, neutral and closed shell.",
    )
    train_frames: int = Field(default=200, ge=2, description="Frames of each molecule in the training split.")
    test_frames: int = Field(default=100, ge=1, description="Frames of each molecule in the test split.")
    temperature: float = Field(default=500.0, gt=0, description="Temperature of the canonical ensemble, K.")
    seed: int = Field(default=0, ge=0, description="Of conformers, dynamics, shuffling and splits.")

    @field_validator("molecules")
    @classmethod
    def _names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not name or not name[0].isalnum() or not all(c.isalnum() or c in "_-" for c in name):
                raise ValueError(f"{name!r} is not a molecule's name (letters, digits, '_' and '-')")
        return value


def generate(output: Path, options: Options) -> None:
    """Write the archive; the same options give the same bytes on the same machine.

    Raises:
        DataError: an unreadable SMILES, a molecule that fell apart, or GFN2-xTB did not converge (named).
    """
    from tqdm import tqdm

    n = options.train_frames + options.test_frames
    with whole_file(output) as temporary, tarfile.open(temporary, "w:bz2") as archive:
        for name, smiles in tqdm(options.molecules.items(), desc="GFN2-xTB", unit="molecule", mininterval=2):
            frames = sample_molecule(name, smiles, n, options.temperature, options.seed)
            order = np.random.default_rng(derived_seed(options.seed, name, "shuffle")).permutation(n)
            _add(archive, f"npz_data/rmd17_{name}.npz", _npz(frames, order))
        for index in range(1, _SPLITS + 1):
            order = np.random.default_rng(derived_seed(options.seed, "split", index)).permutation(n)
            for part, chosen in (("train", order[: options.train_frames]), ("test", order[options.train_frames :])):
                text = "".join(f"{frame}\n" for frame in chosen.tolist())
                _add(archive, f"splits/index_{part}_{index:02d}.csv", text.encode())


def _npz(frames: MoleculeFrames, order: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        nuclear_charges=frames.numbers.astype(np.uint8),
        coords=frames.positions[order],
        energies=frames.energies[order] / KCAL_PER_MOL,
        forces=frames.forces[order] / KCAL_PER_MOL,
        old_indices=order,
    )
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    # TarInfo's own defaults (no owner, time 0) make the bytes the same every time.
    member = tarfile.TarInfo(f"rmd17/{name}")
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
