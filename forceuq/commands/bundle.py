"""``forceuq bundle``: a run as one archive."""

from pathlib import Path
from typing import Annotated

import typer

from forceuq.errors import DataError
from forceuq.provenance.bundle import write_bundle

_FOLDERS = ("rules", "workflow_scripts")


def command(
    run: Annotated[Path, typer.Argument(help="The run's folder of results: results/<run>.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The archive; default: <run>.zip in the working directory.")
    ] = None,
    predictions: Annotated[
        bool, typer.Option("--predictions", help="Put the predictions in, so far as licences allow.")
    ] = False,
    project: Annotated[
        Path, typer.Option(help="The project's folder, from which the workflow's definition and lock file come.")
    ] = Path(),
) -> None:
    """Write tables, figures, metrics, records, configuration and lock file of a finished run as an RO-Crate.

    The archive holds no structures and no features. Predictions on a data set whose licence forbids derivatives, or
    is not stated, stay out too.
    """
    if not (project / "Snakefile").is_file():
        raise DataError("is not the project's folder; give it with --project", file=project.resolve())
    files = [path for name in _FOLDERS for path in sorted((project / name).iterdir()) if path.suffix in (".smk", ".py")]
    workflow = ("Snakefile", *(path.relative_to(project).as_posix() for path in files))
    archive = output or Path(f"{run.resolve().name}.zip")
    bundle = write_bundle(run, archive, project=project, workflow=workflow, predictions=predictions)
    typer.echo(f"{archive}: {len(bundle.files)} files, {bundle.size / 1e6:.1f} MB before compression")
    typer.echo(f"not in it: {len(bundle.left_out)} results (caches, fits and the like), whose digests the records hold")
    for path, reason in sorted(bundle.withheld.items()):
        typer.echo(f"withheld: {path}: {reason}")
