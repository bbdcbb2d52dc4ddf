"""``forceuq compare``: what a change did."""

import json
from pathlib import Path
from typing import Annotated

import typer

from forceuq.provenance.comparison import compare_runs, report


def command(
    first: Annotated[Path, typer.Argument(help="A run's folder of results: results/<run>.")],
    second: Annotated[Path, typer.Argument(help="Another's; of the same results folder or of another one.")],
    rows: Annotated[int, typer.Option(min=0, help="Moved metrics that are shown, at most; 0: all.")] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show which configuration, data, code, packages and machines differ, and how each metric moved.

    A metric's change is also given in spreads: the standard deviation of a difference between two single fits, from
    the seeds and tasks of both runs.
    """
    comparison = compare_runs(first, second)
    if as_json:
        typer.echo(json.dumps(comparison.as_json(), indent=2, default=str))
    else:
        typer.echo(report(comparison, (first.name, second.name), rows or None), nl=False)
