"""``forceuq audit``: hash everything again and walk every chain."""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from forceuq.configuration.files import read_configuration
from forceuq.errors import ConfigurationError, DataError
from forceuq.provenance.audit import Report, audit
from forceuq.provenance.findings import GRAVE, Kind
from forceuq.provenance.ledger import read_ledger

_SHOWN = 20  # findings of a kind; all are in the JSON
_HEADS = {
    Kind.ALTERED: "altered: not the bytes that were written",
    Kind.MISSING: "missing",
    Kind.UNACCOUNTED: "unaccounted: no record tells where they come from",
    Kind.REMADE: "made again since the ledger was written, or from inputs that were made again since",
    Kind.CODE: "made by other code than today's",
    Kind.CONFIGURATION: "made under another configuration",
    Kind.DIRTY: "made from a tree with uncommitted changes",
}


def command(
    run: Annotated[Path, typer.Argument(help="The run's folder of results: results/<run>.")],
    project: Annotated[
        Path, typer.Option(help="The project's folder, whose code is compared with that of the records.")
    ] = Path(),
    configfile: Annotated[
        list[Path] | None,
        typer.Option(help="Today's configuration, overlays repeated in order; default: that of the run's ledger."),
    ] = None,
    configuration: Annotated[
        bool, typer.Option(help="Compare with what the configuration gives each job (plans the workflow: seconds).")
    ] = True,
    root: Annotated[str | None, typer.Option(help="Root digest that the run's ledger must have.")] = None,
    allow: Annotated[
        list[Kind] | None, typer.Option(help="Kind of finding that does not count for the exit code; repeatable.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; default: one a core.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Hash every file of a run again and check each table cell and figure down to its sources.

    Exit code 0: all verified. 1: something is altered, missing or unaccounted. 3: everything is as it was made, but
    not by today's code or configuration, or from uncommitted changes. 2: it could not be done.
    """
    if not (project / "forceuq").is_dir():
        raise DataError("is not the project's folder; give it with --project", file=project.resolve())
    planned, reason = _planned(run, project, configfile or []) if configuration else (None, "not asked for")
    report = audit(run, project, planned=planned, root=root, workers=workers)
    if reason is not None:
        report.unchecked.append(f"whether the configuration is today's: {reason}")
    typer.echo(json.dumps(report.as_json(), indent=2) if as_json else _text(report), nl=as_json)
    kinds = {finding.kind for finding in report.findings} - set(allow or ())
    if kinds & GRAVE:
        raise typer.Exit(1)
    if kinds:
        raise typer.Exit(3)


def _planned(run: Path, project: Path, configfiles: list[Path]) -> tuple[dict[str, dict[str, Any]] | None, str | None]:
    """Ask the workflow what today's configuration gives each job; or say why it cannot tell."""
    with tempfile.TemporaryDirectory() as folder:
        for file in configfiles:
            read_configuration(file)
        files = [file.absolute() for file in configfiles]
        if not files:
            try:
                configuration = read_ledger(run.parent, run.name).configuration
            except DataError:
                return None, "none is given, and the run has no ledger with its own"
            files = [Path(folder) / "configuration.json"]
            # In its own order, which is that of tables and figures.
            files[0].write_text(json.dumps(configuration), encoding="utf-8")
        command = [sys.executable, "-m", "rerun_reasons.configured", "--configfile", *map(str, files)]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    if done.returncode:
        if configfiles:
            # Of an error that Snakemake did not expect, the last line tells what it was.
            reason = _last_line(done.stderr) if "Traceback" in done.stderr else f"\n{done.stderr.strip()}"
            raise ConfigurationError(f"the workflow cannot be planned with --configfile: {reason}")
        return None, f"the workflow cannot be planned with that of the ledger ({_last_line(done.stderr)})"
    planned: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return planned, None


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]


def _text(report: Report) -> str:
    lines = []
    for kind in Kind:
        found = [finding for finding in report.findings if finding.kind is kind]
        if not found:
            continue
        lines.append(f"{_HEADS[kind]} ({len(found)}):")
        lines += [f"  {finding.path}: {finding.detail}" for finding in found[:_SHOWN]]
        if len(found) > _SHOWN:
            lines.append(f"  and {len(found) - _SHOWN} more (--json names all)")
        lines.append("")
    for name, verdicts in (("results", report.results), ("table cells", report.cells)):
        counts = Counter(_verdict([finding.kind for finding in found]) for found in verdicts.values())
        told = ", ".join(
            f"{counts[verdict]} {verdict}" for verdict in ("verified", "outdated", "broken") if counts[verdict]
        )
        lines.append(f"{len(verdicts)} {name}: {told or 'none'}")
    lines += [f"  broken: {name}" for name, found in report.results.items() if any(f.kind in GRAVE for f in found)]
    lines += [f"not checked: {what}" for what in report.unchecked]
    size = report.size / 1e9
    speed = size / max(report.seconds, 1e-9)
    lines.append(
        f"{report.jobs} jobs, {report.files} files, {size:.3g} GB in {report.seconds:.1f} s ({speed:.2g} GB/s)"
    )
    if report.root is not None:
        lines.append(f"root of the ledger: {report.root}")
    return "\n".join([*lines, ""])


def _verdict(kinds: list[Kind]) -> str:
    if any(kind in GRAVE for kind in kinds):
        return "broken"
    return "outdated" if kinds else "verified"
