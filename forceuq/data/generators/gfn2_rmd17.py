"""An archive in rMD17's layout, of GFN2-xTB molecular dynamics of molecules of one's choice."""

import io
import tarfile
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from forceuq.files import whole_file

_KCAL_PER_MOL = 0.0433641153  # eV


class Options(BaseModel):
    """Which molecules, and how many frames of each."""

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
        description="SMILES of each molecule by name.",
    )
    train_frames: int = Field(default=200, ge=2, description="Frames in each molecule's training split.")
    test_frames: int = Field(default=100, ge=1, description="Frames in each molecule's test split.")
    temperature: float = Field(default=500.0, gt=0, description="K.")
    seed: int = Field(default=0, ge=0, description="Of the dynamics and the order of the frames.")


def generate(output: Path, options: Options) -> None:
    """Write the archive; the same bytes for the same options.

    Raises:
        DataError: a molecule fell apart or GFN2-xTB did not converge.
    """
    from tqdm import tqdm

    from forceuq.data.generators.molecules import sample_molecule

    n = options.train_frames + options.test_frames
    with whole_file(output) as temporary, tarfile.open(temporary, "w:bz2") as archive:
        for name, smiles in tqdm(options.molecules.items(), desc="molecules", unit="molecule"):
            frames = sample_molecule(name, smiles, n, options.temperature, options.seed)
            # Shuffled as rMD17's frames are: neighbours in the array are not neighbours in time.
            order = np.random.default_rng(options.seed).permutation(n)
            arrays = {
                "nuclear_charges": frames.numbers.astype(np.uint8),
                "coords": frames.positions[order],
                "energies": frames.energies[order] / _KCAL_PER_MOL,
                "forces": frames.forces[order] / _KCAL_PER_MOL,
                "old_indices": order,
                "old_energies": frames.energies[order] / _KCAL_PER_MOL,
                "old_forces": frames.forces[order] / _KCAL_PER_MOL,
            }
            buffer = io.BytesIO()
            np.savez(buffer, **arrays)
            _add(archive, f"rmd17/npz_data/rmd17_{name}.npz", buffer.getvalue())
        for split, start, stop in (("train", 0, options.train_frames), ("test", options.train_frames, n)):
            text = "".join(f"{index}\n" for index in range(start, stop))
            _add(archive, f"rmd17/splits/index_{split}_01.csv", text.encode())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
