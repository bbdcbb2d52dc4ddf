"""``forceuq predict``: forces and their uncertainties for structures of your own."""

from pathlib import Path
from typing import Annotated

import typer

from forceuq.calibration_kinds import CalibrationKind


def command(
    run: Annotated[Path, typer.Argument(help="The run's folder of results: results/<run>.")],
    method: Annotated[str, typer.Argument(help="The method, by its name in the configuration.")],
    files: Annotated[list[Path], typer.Argument(help="Extended XYZ or ASE trajectories.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Extended XYZ that is written.")],
    dataset: Annotated[str | None, typer.Option(help="That it was fitted to; not needed if only one.")] = None,
    task: Annotated[str | None, typer.Option(help="That it was fitted to; not needed if only one.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the fit, or which ensemble; default: the first.")] = None,
    calibration: Annotated[CalibrationKind, typer.Option(help="Which of the run's to apply.")] = "decoupled",
    device: Annotated[str, typer.Option(help="Where the backbone runs: cpu, cuda, or auto.")] = "auto",
    max_atoms: Annotated[int, typer.Option(min=1, help="In a pass of the backbone, at most.")] = 2048,
) -> None:
    """Predict forces with calibrated uncertainties by a method of a finished run.

    Each atom gets forceuq_forces (eV/Å); forceuq_std (eV/Å), the root of the mean variance of a component;
    forceuq_rank, the share of the run's validation atoms that are more certain; and its covariance as
    forceuq_component_std (x, y, z) and forceuq_correlation (yz, xz, xy).
    """
    from forceuq.applied.chosen import choose
    from forceuq.applied.files import predict_files
    from forceuq.applied.predictor import Predictor

    chosen = choose(run.absolute(), method, dataset=dataset, task=task, seed=seed, calibration=calibration)
    summary = predict_files(Predictor(chosen, device, max_atoms), files, output)
    method, dataset, task, number = chosen.key
    a, b = chosen.factors
    typer.echo(f"{method}, fitted to {dataset}, {task}, seed {number}; calibration {calibration}: {a=:.4g}, {b=:.4g}")
    typer.echo(f"{output}: {summary.frames} frames, {summary.atoms} atoms")
    typer.echo(
        f"std of a force component: {summary.mean_std:.3g} eV/Å on average, {summary.largest_std:.3g} at most"
        f" ({summary.largest_at})"
    )
    typer.echo(f"{summary.beyond} atoms are less certain than every one of the run's validation atoms")
