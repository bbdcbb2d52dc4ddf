"""What a finished run's methods predict of other structures: forces, covariances, ranks."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from conftest import Project

from forceuq.applied.calculator import UncertainForces
from forceuq.applied.chosen import choose
from forceuq.applied.files import predict_files
from forceuq.applied.predictor import Predictor
from forceuq.data.splits import read_part
from forceuq.data.structures import Structure, read_structures
from forceuq.errors import ConfigurationError, DataError
from forceuq.predictions import PredictionBlock, read_predictions, unpack_symmetric

pytestmark = [pytest.mark.workflow, pytest.mark.slow]


def alloys(project: Project, part: str) -> list[Structure]:
    (folder,) = (project.folder / "results/cache/datasets").glob("alloys-*")
    rows = read_part(folder / "splits.parquet", part)
    return [each for _, each in read_structures(folder / "structures.parquet", rows)]


def of_the_run(project: Project, method: str, split: str) -> PredictionBlock:
    file = project.folder / f"results/tiny/predictions/{method}/alloys/mptrj/seed0/{split}.parquet"
    (block,) = read_predictions(file)
    return block


@pytest.fixture(scope="module")
def run(finished: Project) -> Path:
    return finished.folder / "results/tiny"


@pytest.mark.parametrize("method", ["bll-mse", "bll-pretrained"])
def test_predictions_are_those_of_the_run(finished: Project, run: Path, method: str) -> None:
    structures, block = alloys(finished, "far"), of_the_run(finished, method, "far")
    # In passes of one structure, so that only rounding is left of what it was together with.
    predictor = Predictor(choose(run, method, dataset="alloys"), max_atoms=1)
    unlabelled = [replace(each, forces=np.zeros_like(each.forces)) for each in structures]
    found = predictor.predict(unlabelled)
    assert [len(each.forces) for each in found] == [len(each) for each in structures]
    forces, floor, spread, covariance = (
        np.concatenate([getattr(each, name) for each in found]) for name in ("forces", "floor", "spread", "covariance")
    )
    a, b = predictor.chosen.factors
    assert (a, b) != (1.0, 1.0)
    np.testing.assert_allclose(forces, block.mean, rtol=1e-3, atol=1e-4 * np.abs(block.mean).max())
    np.testing.assert_allclose(floor, a * unpack_symmetric(block.floor), rtol=1e-12)
    wanted = b * unpack_symmetric(block.spread)
    np.testing.assert_allclose(spread, wanted, rtol=1e-2, atol=1e-5 * np.abs(wanted).max())
    np.testing.assert_allclose(covariance, floor + spread)


def test_ranks_of_the_validation_atoms_are_uniform(finished: Project, run: Path) -> None:
    predictor = Predictor(choose(run, "bll-mse", dataset="alloys", calibration="temperature"))
    ranks = np.concatenate([each.rank for each in predictor.predict(alloys(finished, "val"))])
    n = len(ranks)
    assert n == len(of_the_run(finished, "bll-mse", "validation"))
    np.testing.assert_allclose(np.sort(ranks), (2 * np.arange(n) + 1) / (2 * n))


def test_an_ensemble_is_the_mixture_of_its_members(finished: Project, run: Path) -> None:
    structures = alloys(finished, "id")
    of_each = [choose(run, name, dataset="alloys", calibration="none") for name in ("bll-mse", "bll-pretrained")]
    members = tuple(each.members[0] for each in of_each)
    together = replace(of_each[0], members=members, combination=("ensemble", {}))
    found = [
        np.concatenate([each.forces for each in Predictor(chosen).predict(structures)])
        for chosen in (*of_each, together)
    ]
    np.testing.assert_allclose(found[2], (found[0] + found[1]) / 2)


def test_the_calculator_gives_what_the_predictor_does(finished: Project, run: Path) -> None:
    calculator = UncertainForces(run, "bll-mse", dataset="alloys")
    (first, *_) = alloys(finished, "id")
    atoms = first.atoms()
    atoms.calc = calculator
    (wanted,) = Predictor(calculator.predictor.chosen).predict([first])
    assert np.array_equal(atoms.get_forces(), wanted.forces)
    results = calculator.results
    assert np.array_equal(results["forces_covariance"], wanted.covariance)
    assert np.array_equal(results["forces_std"], wanted.std)
    assert np.array_equal(results["forces_rank"], wanted.rank)
    VelocityVerlet(atoms, timestep=units.fs).run(1)
    with pytest.raises(PropertyNotImplementedError):
        BFGS(atoms, logfile=None).run(steps=1)
    atoms.pbc = (True, True, False)
    with pytest.raises(DataError, match=r"record atoms: cannot be predicted: periodic along some"):
        atoms.get_forces()
    atoms.pbc = first.pbc
    atoms.positions[0] += 0.1
    assert not np.array_equal(atoms.get_forces(), wanted.forces)


def predict(project: Project, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "forceuq", "predict", *map(str, arguments)]
    return subprocess.run(
        command, cwd=project.folder, env=project.environment(), capture_output=True, text=True, check=False
    )


def test_the_command_writes_what_frames_bring_and_what_is_predicted(finished: Project, tmp_path: Path) -> None:
    structures = alloys(finished, "id")[:3]
    frames = [each.atoms() for each in structures]
    frames[1].info["name"] = "second"
    ase.io.write(tmp_path / "some.traj", frames[:2])
    ase.io.write(tmp_path / "more.xyz", frames[2:])
    place = ("results/tiny", "bll-mse", tmp_path / "some.traj", tmp_path / "more.xyz", "--dataset", "alloys")
    done = predict(finished, *place, "-o", tmp_path / "out.xyz")
    assert done.returncode == 0, done.stderr
    assert f"3 frames, {sum(map(len, structures))} atoms" in done.stdout
    written = ase.io.read(tmp_path / "out.xyz", ":")
    assert written[1].info["name"] == "second"
    wanted = Predictor(choose(finished.folder / "results/tiny", "bll-mse", dataset="alloys")).predict(structures)
    for frame, each in zip(written, wanted, strict=True):
        np.testing.assert_allclose(frame.arrays["forceuq_forces"], each.forces, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(frame.arrays["forceuq_std"], each.std, rtol=1e-2, atol=1e-7)
        np.testing.assert_allclose(frame.arrays["forceuq_correlation"], each.correlation, atol=1e-2)
        assert frame.arrays["forceuq_component_std"].shape == (len(frame), 3)
        assert frame.arrays["forceuq_rank"].shape == (len(frame),)
    largest = max(float(each.std.max()) for each in wanted)
    assert f"{largest:.3g} at most" in done.stdout


def test_what_cannot_be_predicted_is_named_and_leaves_no_file(finished: Project, run: Path, tmp_path: Path) -> None:
    frames = [each.atoms() for each in alloys(finished, "id")[:2]]
    frames[1].pbc = (True, True, False)
    ase.io.write(tmp_path / "slab.xyz", frames)
    place = ("results/tiny", "bll-mse", tmp_path / "slab.xyz", "--dataset", "alloys", "-o", tmp_path / "out.xyz")
    done = predict(finished, *place)
    assert done.returncode == 2
    assert "slab.xyz, frame 1: cannot be predicted: periodic along some directions only" in done.stderr
    assert not list(tmp_path.glob("out*"))
    predictor = Predictor(choose(run, "bll-mse", dataset="alloys"))
    for output, why in (("slab.xyz", "replaced by its own predictions"), ("out.traj", "must end in .xyz")):
        with pytest.raises(DataError, match=why):
            predict_files(predictor, [tmp_path / "slab.xyz"], tmp_path / output)
    (tmp_path / "empty.xyz").touch()
    with pytest.raises(DataError, match=r"empty.xyz: no frames in it"):
        predict_files(predictor, [tmp_path / "empty.xyz"], tmp_path / "out.xyz")
    (tmp_path / "cut.xyz").write_text("\n".join((tmp_path / "slab.xyz").read_text().splitlines()[:-1]))
    with pytest.raises(DataError, match=r"cut.xyz"):
        predict_files(predictor, [tmp_path / "cut.xyz"], tmp_path / "out.xyz")
    assert not list(tmp_path.glob("*out*"))
    (first, *_) = alloys(finished, "id")
    nowhere = replace(first, structure_id="first", positions=np.full_like(first.positions, np.nan))
    with pytest.raises(DataError, match=r"record first: cannot be predicted: "):
        predictor.predict([nowhere])
    with pytest.raises(DataError, match=r"another structure has this id"):
        predictor.predict([first, first])


def test_what_a_run_does_not_have_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"method: the run has no 'bll-mze'; did you mean 'bll-mse'"):
        choose(run, "bll-mze")
    with pytest.raises(ConfigurationError, match=r"fitted to several: say which of dataset 'alloys' with task 'mptrj'"):
        choose(run, "bll-mse")
    with pytest.raises(ConfigurationError, match=r"seed: the run has no '7'"):
        choose(run, "bll-mse", dataset="alloys", seed=7)
    with pytest.raises(DataError, match=r"has no predictions"):
        choose(tmp_path, "bll-mse")


def test_what_was_altered_is_named(project: Project) -> None:
    run = project.folder / "results/tiny"
    place = "bll-mse/alloys/mptrj/seed0"
    files = [
        run / f"fits/{place}/posterior.safetensors",
        run / f"calibrations/{place}.json",
        run / f"predictions/{place}/validation.parquet",
        next((project.folder / "results/cache/backbones").glob("*/forceuq-small.safetensors")),
    ]
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(DataError, match=r"is not what these results were made with") as raised:
            choose(run, "bll-mse", dataset="alloys")
        assert str(file).startswith(str(raised.value.file))
        file.write_bytes(content)
    record = run / f"records/calibrate/{place}.json"
    content = record.read_bytes()
    shutil.copy(run / f"records/calibrate/{place.replace('bll-mse', 'bll-pretrained')}.json", record)
    with pytest.raises(DataError, match=r"was fitted to other predictions than there are now"):
        choose(run, "bll-mse", dataset="alloys")
    record.write_bytes(content)
    # Of the caches, the weights and the records are enough.
    for folder in ("features", "datasets"):
        shutil.rmtree(project.folder / "results/cache" / folder)
    choose(run, "bll-mse", dataset="alloys")
