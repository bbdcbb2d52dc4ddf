"""Two runs side by side: what went in that differs, and how the metrics moved."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from forceuq.differences import Change, value_changes
from forceuq.errors import DataError, ForceUQError
from forceuq.files import file_digest
from forceuq.metric_tables import read_frame
from forceuq.provenance.chain import Chain, load_chain
from forceuq.provenance.ledger import named_records, read_ledger
from forceuq.provenance.places import Folder, kept
from forceuq.provenance.schema import Record
from forceuq.source_code import analyse_bytes
from forceuq.tables import aggregate

METRICS = "metrics.parquet"
_KEYS = ["dataset", "split", "method", "calibration", "metric"]
_IDENTITY = re.compile(r"-[0-9a-f]{8}(?=/|$)")


@dataclass(frozen=True)
class Comparison:
    """What differs between two runs; each change goes from the first to the second.

    ``metrics`` has a row a metric (dataset, split, method, calibration): mean and standard deviation over seeds and
    tasks in each run, ``change``, and ``spreads``: the change in units of the standard deviation of a difference of
    two single fits; null where a run has one fit only.
    """

    configuration: list[Change]
    sources: list[Change]
    code: list[Change]
    packages: list[Change]
    machines: list[Change]
    metrics: pd.DataFrame

    @property
    def moved(self) -> pd.DataFrame:
        """The metrics that are not the same to the last bit, the most moved first; those of one run only, last."""
        rows = self.metrics[self.metrics["change"] != 0]
        order = rows["spreads"].abs().sort_values(ascending=False, na_position="last", kind="stable").index
        return rows.loc[order].reset_index(drop=True)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        groups = ("configuration", "sources", "code", "packages", "machines")
        changes = {
            group: [{"what": c.path, "first": _plain(c.old), "second": _plain(c.new)} for c in getattr(self, group)]
            for group in groups
        }
        frame = self.metrics.astype(object).where(self.metrics.notna(), None)
        return {**changes, "metrics": frame.to_dict(orient="records")}


def compare_runs(first: Path, second: Path) -> Comparison:
    """Compare two finished runs by their folders, of one results folder or of two.

    Raises:
        DataError: a run is not finished, or its ledger, a record or its metrics are not what was written.
    """
    facts = [_facts(folder) for folder in (first, second)]
    changes = {name: list(value_changes("", facts[0][name], facts[1][name])) for name in facts[0]}
    return Comparison(metrics=_metrics(first, second), **changes)


def _facts(folder: Path) -> dict[str, dict[str, Any]]:
    results, run = folder.resolve().parent, folder.resolve().name
    ledger = read_ledger(results, run)
    chain = load_chain(results, run)
    records = named_records(chain, ledger)
    _as_made(results, f"{run}/{METRICS}", records)
    sources: dict[str, str] = {}
    packages: dict[str, set[str]] = defaultdict(set)
    machines: dict[str, set[str]] = defaultdict(set)
    modules: dict[str, dict[str, str]] = defaultdict(dict)  # name -> digest of a kept source -> folder that keeps it
    for _, record in sorted(records.items()):
        if not record.inputs:
            sources.update({_IDENTITY.sub("", output.path): output.sha256 for output in record.outputs})
        for name, version in {**record.software.versions, "python": record.software.python}.items():
            packages[name].add(version)
        for name in ("cpu", "gpu", "system"):
            machines[name].add(str(getattr(record.machine, name)))
        for name, digest in record.code.modules.items():
            modules[name].setdefault(digest, record.run)
    code = {name: {_meaning(chain, *each, name) for each in found.items()} for name, found in modules.items()}
    configuration = {key: value for key, value in ledger.configuration.items() if key not in ("run", "results")}
    return {
        "configuration": configuration,
        "sources": sources,
        "code": _joined(code),
        "packages": _joined(packages),
        "machines": _joined(machines),
    }


def _as_made(results: Path, name: str, records: Mapping[str, Record]) -> None:
    """Hold a file to the record that the run's ledger leads to."""
    file = results / name
    made = [output.sha256 for record in records.values() for output in record.outputs if output.path == name]
    if not made:
        raise DataError("is told of by no record that the run's ledger names; 'forceuq audit' says more", file=file)
    try:
        digest = file_digest(file)
    except OSError as error:
        raise DataError(f"cannot be read ({error}); 'forceuq audit' says more", file=file) from error
    if made != [digest]:
        raise DataError(
            f"is not what its job made: SHA-256 {digest}, not {', '.join(made)}; 'forceuq audit' says more", file=file
        )


def _meaning(chain: Chain, digest: str, run: str, name: str) -> str:
    """Return the digest of what a kept source does; comments and layout are no difference."""
    content = kept(Folder(chain.results, run), digest)
    try:
        return analyse_bytes(content, Path(name)).digest
    except ForceUQError:  # of a later Python than this
        return digest[:16]


def _joined(values: dict[str, set[str]]) -> dict[str, str]:
    return {name: ", ".join(sorted(found)) for name, found in sorted(values.items())}


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, list, dict)) or value is None else str(value)


def _metrics(first: Path, second: Path) -> pd.DataFrame:
    frames = [
        aggregate(read_frame(folder / METRICS, "metrics"))[[*_KEYS, "mean", "std", "n"]] for folder in (first, second)
    ]
    frame = frames[0].merge(frames[1], on=_KEYS, how="outer", suffixes=("_first", "_second"))
    means = frame[["mean_first", "mean_second"]].astype(float)
    spread = (frame[["std_first", "std_second"]].astype(float) ** 2).sum(axis=1, skipna=False) ** 0.5
    frame["change"] = means["mean_second"] - means["mean_first"]
    both_null = means.isna().all(axis=1)
    frame.loc[both_null, "change"] = 0.0
    frame["spreads"] = (frame["change"] / spread).where(spread > 0)
    return frame


def report(comparison: Comparison, names: tuple[str, str], rows: int | None = 30) -> str:
    """Return the comparison as Markdown.

    Args:
        comparison: what differs.
        names: of the runs.
        rows: moved metrics that are shown, at most; None: all.
    """
    lines = [f"# {names[0]} -> {names[1]}", ""]
    titles = {
        "configuration": "Configuration",
        "sources": "Raw data and weights (SHA-256)",
        "code": "Code (digest of what a file does)",
        "packages": "Packages",
        "machines": "Machines",
    }
    for group, title in titles.items():
        changes = getattr(comparison, group)
        lines += [f"## {title}", "", *([f"* {change}" for change in changes] or ["No difference."]), ""]
    moved = comparison.moved
    lines += [f"## Metrics: {len(moved)} of {len(comparison.metrics)} moved", ""]
    if len(moved):
        lines += ["| data set | split | method | calibration | metric | first | second | change | in spreads |"]
        lines += ["|" + " --- |" * 9]
        lines += [_row(row) for row in moved[:rows].to_dict(orient="records")]
        if rows is not None and len(moved) > rows:
            lines += ["", f"{len(moved) - rows} more moved less."]
    return "\n".join(lines) + "\n"


def _row(row: dict[Any, Any]) -> str:
    cells = [row[key] for key in _KEYS]
    for side in ("first", "second"):
        mean, std = row[f"mean_{side}"], row[f"std_{side}"]
        cells.append("" if pd.isna(mean) else f"{mean:.4g}" + ("" if pd.isna(std) else f" ± {std:.2g}"))
    cells += ["" if pd.isna(row[key]) else f"{row[key]:+.3g}" for key in ("change", "spreads")]
    return f"| {' | '.join(cells)} |"
