"""``forceuq trace``: what a file or a table cell follows from."""

import json
from pathlib import Path
from typing import Annotated

import typer

from forceuq.configuration.benchmark import nearest
from forceuq.errors import DataError
from forceuq.provenance.chain import load_chain
from forceuq.provenance.lineage import Lineage, as_json, as_mermaid, as_text, runs, trace_cell, trace_file


def command(
    what: Annotated[
        str, typer.Argument(help="A file among the results, or a table cell: 'table2:<split>,<method>,<metric>'.")
    ],
    run: Annotated[
        Path | None, typer.Option(help="The run's folder, for table cells; not needed where there is only one run.")
    ] = None,
    results: Annotated[Path, typer.Option(help="The folder of all results.")] = Path("results"),
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flowchart.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the lineage of a file or table cell down to address, DOI, checksum and licence of each source."""
    lineage = _lineage(what, run, results)
    if mermaid:
        typer.echo(as_mermaid(lineage), nl=False)
    elif json_:
        typer.echo(json.dumps(as_json(lineage), indent=2))
    else:
        typer.echo(as_text(lineage), nl=False)


def _lineage(what: str, run: Path | None, results: Path) -> Lineage:
    file = Path(what)
    if file.exists():
        absolute = file.absolute()
        for folder in absolute.parents:
            if (folder / "records").is_dir():
                return trace_file(load_chain(folder.parent, folder.name), absolute)
        raise DataError("lies in no run's folder that has records", file=what)
    if ":" not in what:
        form = "a table cell has the form 'table2:<split>,<method>,<metric>'"
        raise DataError(f"there is no such file, and {form}", file=what)
    if run is None:
        found = runs(results)
        if len(found) != 1:
            which = f"there are {', '.join(found)}" if found else f"there is none in {results}"
            raise DataError(f"which run? Give it with --run; {which}", file=what)
        run = results / found[0]
    run = run.absolute()
    if not run.is_dir():
        raise DataError(f"there is no such run; {nearest(run.name, runs(run.parent))}", file=run)
    return trace_cell(load_chain(run.parent, run.name), what)
