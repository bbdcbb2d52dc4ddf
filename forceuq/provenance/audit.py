"""The audit of a run: everything is hashed again, and every chain walked from the results to the sources."""

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain as concatenated
from pathlib import Path
from typing import Any

from forceuq.errors import DataError
from forceuq.provenance import checks
from forceuq.provenance.cells import addressed_tables, cells_of
from forceuq.provenance.chain import Chain, load_chain
from forceuq.provenance.code import code
from forceuq.provenance.findings import GRAVE, Finding, Kind
from forceuq.provenance.hashing import digests
from forceuq.provenance.ledger import read_ledger


@dataclass
class Report:
    """What an audit found.

    Args:
        run: name of the run.
        root: of its ledger; None where that cannot be read.
        jobs: records that were read, caches' included.
        files: that were hashed.
        size: bytes of those.
        findings: everything wrong, in order.
        results: path of each final result -> what is wrong in its lineage.
        cells: address of each table cell -> likewise.
        unchecked: what was not looked at, and why.
        seconds: that the audit took.
    """

    run: str
    root: str | None
    jobs: int = 0
    files: int = 0
    size: int = 0
    findings: list[Finding] = field(default_factory=list)
    results: dict[str, list[Finding]] = field(default_factory=dict)
    cells: dict[str, list[Finding]] = field(default_factory=dict)
    unchecked: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def grave(self) -> list[Finding]:
        """Findings that no honest run leaves behind."""
        return [finding for finding in self.findings if finding.kind in GRAVE]

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values; results and cells with the numbers of their findings."""
        number = {id(finding): i for i, finding in enumerate(self.findings)}
        return {
            "run": self.run,
            "root": self.root,
            "jobs": self.jobs,
            "files": self.files,
            "bytes": self.size,
            "seconds": round(self.seconds, 3),
            "findings": [finding.as_json() for finding in self.findings],
            "results": {name: [number[id(f)] for f in found] for name, found in self.results.items()},
            "cells": {name: [number[id(f)] for f in found] for name, found in self.cells.items()},
            "unchecked": self.unchecked,
        }


def audit(
    run: Path,
    project: Path | None = None,
    *,
    planned: Mapping[str, Mapping[str, Any]] | None = None,
    root: str | None = None,
    workers: int | None = None,
) -> Report:
    """Audit a run.

    Args:
        run: its folder of results, beside the cache's.
        project: the project's folder, to compare its code with; None: not compared.
        planned: record (relative to the folder of all results) -> params, of every job of today's configuration;
            None: not compared.
        root: the root digest that the run's ledger must have; None: any.
        workers: threads that hash; None: one a core.

    Raises:
        DataError: there is no such run, or it has no records.
    """
    began = time.perf_counter()
    run = run.resolve()
    if not run.is_dir():
        raise DataError("there is no such run", file=run)
    chain = load_chain(run.parent, run.name)
    report = Report(run.name, _root(chain), jobs=len(chain.records))
    hashed = {
        chain.results / name: size
        for name, told in checks.expected_files(chain).items()
        for _, size, _ in told
        # A file of another size is another file; it need not be read.
        if checks.size_of(chain.results / name) == size
    }
    report.files, report.size = len(hashed), sum(hashed.values())
    found = digests([*hashed, *checks.kept_files(chain)], workers)
    findings = set(
        concatenated(
            chain.findings,
            checks.files(chain, found),
            checks.links(chain),
            checks.kept(chain, found),
            checks.notes(chain),
            checks.older(chain),
            checks.accounted(chain),
            checks.ledger(chain, root),
            checks.trees(chain),
            () if project is None else code(chain, project),
            () if planned is None else checks.configuration(chain, planned),
        )
    )
    report.findings = sorted(findings, key=_order)
    if project is None:
        report.unchecked.append("whether the code is today's: no project given")
    if any(record.git.dirty is None for record in chain.records.values()):
        report.unchecked.append("whether the tree was clean: jobs ran outside of a repository")
    _verdicts(chain, report, found)
    report.seconds = time.perf_counter() - began
    return report


def _order(finding: Finding) -> tuple[int, str, str, str]:
    return list(Kind).index(finding.kind), finding.path, finding.detail, finding.record or ""


def _root(chain: Chain) -> str | None:
    try:
        return read_ledger(chain.results, chain.run).root
    except DataError:
        return None


def _verdicts(chain: Chain, report: Report, hashed: Mapping[Path, str | OSError]) -> None:
    """Say of each result and table cell what is wrong anywhere in its lineage."""
    by_record: dict[str, list[Finding]] = defaultdict(list)
    for finding in report.findings:
        if finding.record is not None:
            by_record[finding.record].append(finding)
    for name, path in chain.finals().items():
        lineage = chain.lineage([path]) if by_record else set()
        report.results[name] = [finding for one in sorted(lineage & set(by_record)) for finding in by_record[one]]
    seen: dict[frozenset[str], list[Finding]] = {}
    for path, table in addressed_tables(chain):
        try:
            cells = cells_of(chain, path, table, hashed)
        except DataError as error:
            # Its file or record is among the findings; the rest of the report must not be lost to it.
            said = str(error).removeprefix(f"{chain.results}/").removesuffix("; 'forceuq audit' says more")
            report.unchecked.append(f"the cells of {said}")
            continue
        for cell in cells:
            faulty = frozenset(chain.lineage([cell.record], cell.only) & set(by_record) if by_record else ())
            if faulty not in seen:
                seen[faulty] = [finding for one in sorted(faulty) for finding in by_record[one]]
            report.cells[cell.address] = seen[faulty]
