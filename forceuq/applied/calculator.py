"""An ASE calculator: forces, and how uncertain they are, while a simulation runs."""

from pathlib import Path
from typing import Any

from ase.calculators.calculator import Calculator, all_changes

from forceuq.applied.chosen import choose
from forceuq.applied.predictor import Predictor, unlabelled
from forceuq.calibration_kinds import CalibrationKind


class UncertainForces(Calculator):
    """Forces by a method of a finished run.

    ``results`` holds ``forces`` (n, 3), eV/Å; ``forces_covariance`` (n, 3, 3), (eV/Å)²; ``forces_std`` (n,), eV/Å; and
    ``forces_rank`` (n,), as of ``forceuq.applied.predictor.ForcePrediction``. There is no energy: these forces are
    no gradient of one.

    Args:
        run: the run's folder of results.
        method: its name in the configuration.
        dataset: that the method was fitted to; None where there is only one.
        task: likewise.
        seed: likewise; None: the lowest there is.
        calibration: none, temperature or decoupled.
        device: where the backbone runs: cpu, cuda, or auto.

    Raises:
        ConfigurationError: there is no such method, or there are several.
        DataError: a file that is missing, damaged, or not what the run made; in a calculation, atoms that cannot be
            predicted.
    """

    implemented_properties = ["forces"]  # noqa: RUF012 - ASE's interface

    def __init__(
        self,
        run: str | Path,
        method: str,
        *,
        dataset: str | None = None,
        task: str | None = None,
        seed: int | None = None,
        calibration: CalibrationKind = "decoupled",
        device: str = "auto",
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        chosen = choose(Path(run), method, dataset=dataset, task=task, seed=seed, calibration=calibration)
        self.predictor = Predictor(chosen, device)

    def calculate(
        self, atoms: Any = None, properties: Any = ("forces",), system_changes: Any = tuple(all_changes)
    ) -> None:
        """Predict the forces of ASE atoms; see the class."""
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        (found,) = self.predictor.predict([unlabelled(self.atoms, "atoms")])
        self.results = {
            "forces": found.forces,
            "forces_covariance": found.covariance,
            "forces_std": found.std,
            "forces_rank": found.rank,
        }
