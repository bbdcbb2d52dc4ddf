import json
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from ase.db import connect
from pydantic import ValidationError

from forceuq.data.generators import emt_alexandria, emt_mptrj, emt_tm23, gfn2_rmd17, load_generator
from forceuq.data.sources import alexandria, mptrj, rmd17, tm23
from forceuq.data.splits import part_counts
from forceuq.data.structures import read_structures
from forceuq.errors import ConfigurationError

ALLOYS = emt_mptrj.Options(pairs=[("Cu", "Au")], materials_per_pair=2, frames=4)
ONE_ALLOY = ALLOYS.model_copy(update={"materials_per_pair": 1, "frames": 2})
METALS = emt_tm23.Options(metals=("Cu",), train_frames=2, test_frames=1, equilibration=2, interval=2)
TERNARIES = emt_alexandria.Options(materials=2, frames=2, steps=4, databases=2)
MOLECULES = gfn2_rmd17.Options(molecules={"water": "O", "methane": "C"}, train_frames=6, test_frames=3)


def test_kinds_are_found_without_heavy_imports():
    code = (
        "import sys; from forceuq.data.generators import kinds, load_generator; "
        "[load_generator(kind) for kind in kinds()]; "
        "print(kinds(), [name for name in ('ase', 'rdkit', 'tblite', 'torch') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "('emt_alexandria', 'emt_mptrj', 'emt_tm23', 'gfn2_rmd17') []"
    with pytest.raises(ConfigurationError, match="'emt_mptr'; nearest: emt_mptrj"):
        load_generator("emt_mptr")


def test_alloys_are_read_as_mptrj_with_their_own_labels(tmp_path):
    from ase.calculators.emt import EMT

    emt_mptrj.generate(tmp_path / "raw", ALLOYS)
    mptrj.convert(tmp_path / "raw", tmp_path / "s.parquet", mptrj.Options(max_bad_fraction=0))
    records = {k: v for frames in json.loads((tmp_path / "raw").read_text()).values() for k, v in frames.items()}
    items = [item for _, item in read_structures(tmp_path / "s.parquet")]
    assert len(items) == 8
    assert len({item.group_id for item in items}) == 2
    for item in items:
        atoms = item.atoms()
        atoms.calc = EMT()
        np.testing.assert_allclose(atoms.get_forces(), item.forces, atol=1e-9)
        assert item.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        assert set(item.numbers.tolist()) == {29, 79}
        assert item.energy_above_relaxed >= -1e-12
        record = records[item.structure_id]
        gigapascal = -0.1 * np.array(record["stress"])  # as MPtrj's readers take it
        np.testing.assert_allclose(gigapascal, atoms.get_stress(voigt=False) * 160.21766208, atol=1e-6)
        fractional = [site["abc"] for site in record["structure"]["sites"]]
        np.testing.assert_allclose(fractional @ item.cell, item.positions, atol=1e-9)
    assert max(item.energy_above_relaxed for item in items) > 0.02


def assert_labelled_by_emt(item):
    from ase.calculators.emt import EMT

    atoms = item.atoms()
    atoms.calc = EMT()
    # Extended XYZ has eight decimals of positions and forces.
    np.testing.assert_allclose(atoms.get_forces(), item.forces, atol=2e-6)
    assert item.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-5)


def test_metals_are_read_as_tm23_with_their_own_labels(tmp_path):
    emt_tm23.generate(tmp_path / "raw", METALS)
    tm23.convert(tmp_path / "raw", tmp_path / "s.parquet", tm23.Options(max_bad_fraction=0))
    items = [item for _, item in read_structures(tmp_path / "s.parquet")]
    assert len({item.structure_id for item in items}) == len(items) == 3 * 3
    assert {item.group_id for item in items} == {"Cu"}
    for item in items[::4]:
        assert len(item) == 31
        assert_labelled_by_emt(item)
    with zipfile.ZipFile(tmp_path / "raw") as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
        union = archive.read("benchmarking_master_collection/Cu_2700cwm_train.xyz")
    assert names == {
        f"Cu_{t}_{p}.xyz" for t in ("cold_nequip", "warm_nequip", "melt_nequip", "2700cwm") for p in ("train", "test")
    }
    assert union.count(b"Lattice") == 3 * 2


def test_ternaries_are_read_as_alex_val_s_with_their_own_labels(tmp_path):
    emt_alexandria.generate(tmp_path / "raw", TERNARIES)
    alexandria.convert(tmp_path / "raw", tmp_path / "s.parquet", alexandria.Options(max_bad_fraction=0))
    items = [item for _, item in read_structures(tmp_path / "s.parquet")]
    assert [item.structure_id for item in items] == [f"data.000{d}-{row}" for d in (0, 1) for row in (1, 2)]
    for item in items:
        # No binary or pure system is among them, so none of what the small backbone was trained on.
        assert len(set(item.numbers.tolist())) == 3
        assert_labelled_by_emt(item)
    with tarfile.open(tmp_path / "raw") as archive:
        archive.extractall(tmp_path, filter="data")
    with connect(tmp_path / "val/data.0001.aselmdb", type="aselmdb") as database:
        (first, last) = (row.toatoms() for row in database.select())
        assert database.get(1).data["sid"]
    np.testing.assert_allclose(last.get_forces(), items[-1].forces)
    assert first.get_stress().shape == (6,)


def test_molecules_are_read_as_rmd17_with_their_own_labels(tmp_path):
    pytest.importorskip("tblite")
    pytest.importorskip("rdkit")
    from forceuq.data.generators.molecules import GFN2

    gfn2_rmd17.generate(tmp_path / "raw", MOLECULES)
    options = rmd17.Options(molecules=("water", "methane"), validation_fraction=0.34, max_bad_fraction=0)
    rmd17.convert(tmp_path / "raw", tmp_path / "s.parquet", options)
    rmd17.split(tmp_path / "s.parquet", tmp_path / "splits", options)
    assert part_counts(tmp_path / "splits") == {
        f"{molecule}-{part}": count
        for molecule in ("water", "methane")
        for part, count in (("train", 4), ("val", 2), ("test", 3))
    }
    items = [item for _, item in read_structures(tmp_path / "s.parquet")]
    assert [len(item) for item in items] == [3] * 9 + [5] * 9
    for item in (items[0], items[-1]):
        energy, forces = GFN2("x", item.numbers.astype(np.int64), item.positions)(item.positions)
        assert item.energy == pytest.approx(energy, abs=1e-4)
        np.testing.assert_allclose(item.forces, forces, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("emt_mptrj", ONE_ALLOY), ("emt_tm23", METALS), ("emt_alexandria", TERNARIES), ("gfn2_rmd17", MOLECULES)],
    ids=["emt_mptrj", "emt_tm23", "emt_alexandria", "gfn2_rmd17"],
)
def test_the_bytes_depend_on_the_options_alone(tmp_path, kind, options):
    if kind == "gfn2_rmd17":
        pytest.importorskip("tblite")
        pytest.importorskip("rdkit")
    generator = load_generator(kind)
    bits = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        generator.generate(tmp_path / name, options.model_copy(update={"seed": seed}))
        bits.append((tmp_path / name).read_bytes())
    assert bits[0] == bits[1]
    assert bits[0] != bits[2]


@pytest.mark.slow
def test_the_default_alloys_fill_every_part(tmp_path):
    emt_mptrj.generate(tmp_path / "raw", emt_mptrj.Options())
    mptrj.convert(tmp_path / "raw", tmp_path / "s.parquet", mptrj.Options(max_bad_fraction=0))
    mptrj.split(tmp_path / "s.parquet", tmp_path / "splits", mptrj.Options())
    assert min(part_counts(tmp_path / "splits").values()) >= 5


def test_options_are_checked():
    with pytest.raises(ValidationError, match="no parameters for 'Fe'"):
        emt_mptrj.Options(pairs=[("Fe", "Cu")])
    with pytest.raises(ValidationError, match="twice"):
        emt_mptrj.Options(pairs=[("Au", "Cu"), ("Cu", "Au")])
    with pytest.raises(ValidationError, match="no parameters for 'Fe'"):
        emt_tm23.Options(metals=["Fe"])
    with pytest.raises(ValidationError, match="twice"):
        emt_tm23.Options(metals=["Cu", "Cu"])
    with pytest.raises(ValidationError, match="not a molecule's name"):
        gfn2_rmd17.Options(molecules={"a/b": "C"})
