"""``forceuq verify``: check an archive of a run."""

import json
from pathlib import Path
from typing import Annotated

import typer

from forceuq.provenance.verification import verify_bundle


def command(
    archive: Annotated[Path, typer.Argument(help="What 'forceuq bundle' wrote.")],
    root: Annotated[str | None, typer.Option(help="Root digest that it must have, as it was published.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check every file, record and chain of an archive, anywhere and without the project's data.

    Exit code 0: all is as it was written. 1: something is not. 2: it is no such archive.
    """
    found = verify_bundle(archive, root)
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=2))
    else:
        for fault in found.faults:
            typer.echo(f"wrong: {fault}")
        verdict = f"{len(found.faults)} things are wrong" if found.faults else "verified"
        typer.echo(f"{found.run}: {verdict}. {found.files} files, {found.jobs} jobs")
        typer.echo(f"{found.absent} files that the records tell of are not in the archive")
        if found.uncovered:
            typer.echo(
                f"{len(found.uncovered)} files of the workflow's definition have no record: they are held to the "
                "metadata, not to the root (--json names them)"
            )
        typer.echo(f"root: {found.root}")
    if found.faults:
        raise typer.Exit(1)
