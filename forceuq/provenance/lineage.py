"""What a file or table cell follows from, down to its sources, as text, as Mermaid and as plain values."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forceuq.configuration.benchmark import nearest
from forceuq.errors import DataError
from forceuq.provenance.cells import Cell, find_cells
from forceuq.provenance.chain import Chain, Selection
from forceuq.provenance.ledger import read_ledger
from forceuq.provenance.places import Folder, relative
from forceuq.provenance.schema import Record
from forceuq.provenance.stated import stated_source


@dataclass(frozen=True)
class Lineage:
    """What something follows from.

    Args:
        what: the file or cell that was asked for.
        values: of cells: address -> value.
        start: the record that it is in.
        chain: all records.
        only: which inputs of the jobs count.
        configuration: of the run's ledger; empty where there is none.
    """

    what: str
    values: dict[str, str]
    start: str
    chain: Chain
    only: Selection = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)

    @property
    def records(self) -> dict[str, Record]:
        """The jobs that it follows from, by their records' paths."""
        return {path: self.chain.records[path] for path in sorted(self.chain.lineage([self.start], self.only))}

    def before(self, path: str) -> list[str]:
        """Return the records of the jobs that one job took something from, in the order of its inputs."""
        return list(dict.fromkeys(maker for _, maker in self.chain.made_from(path, self.only) if maker is not None))

    def unknown(self, path: str) -> list[str]:
        """Return those inputs of a job that no record tells of."""
        return [artefact.path for artefact, maker in self.chain.made_from(path, self.only) if maker is None]


def trace_cell(chain: Chain, address: str) -> Lineage:
    """Return the lineage of a table cell (of several, where the address leaves something open).

    Raises:
        DataError: there is no such table or cell; it names the nearest.
    """
    cells = find_cells(chain, address)
    only = {
        path: frozenset().union(*(cell.only[path] for cell in cells if path in cell.only))
        for path in {path for cell in cells for path in cell.only}
    }
    return Lineage(
        address, {cell.address: cell.value for cell in cells}, _one(cells), chain, only, _configuration(chain)
    )


def _one(cells: list[Cell]) -> str:
    return next(iter(dict.fromkeys(cell.record for cell in cells)))


def trace_file(chain: Chain, file: Path) -> Lineage:
    """Return the lineage of a file among the results.

    Raises:
        DataError: no record tells of it; it names the nearest that there are.
    """
    name = relative(file, chain.results)
    candidates = [name, *(parent.as_posix() for parent in Path(name).parents)]
    made = next((candidate for candidate in candidates if candidate in chain.makers), None)
    if made is None:
        raise DataError(f"no record tells of it; {nearest(name, chain.makers)}", file=file)
    return Lineage(name, {}, chain.makers[made], chain, configuration=_configuration(chain))


def _configuration(chain: Chain) -> Mapping[str, Any]:
    try:
        return read_ledger(chain.results, chain.run).configuration
    except DataError:  # not finished
        return {}


def title(path: str, record: Record) -> str:
    """Return a job in a few words: its rule and what sets it apart."""
    parts = Path(path).with_suffix("").parts
    place = parts[parts.index(record.rule) + 1 :] if record.rule in parts else ()
    return " ".join([record.rule, "/".join(place)]).strip()


def source_of(record: Record, configuration: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return where a job's data came from, if it took none from another job; None otherwise.

    Args:
        record: of the job.
        configuration: of the run, which states DOI and licence; where it does not, the record tells.
    """
    if record.inputs:
        return None
    digests = {output.path: output.sha256 for output in record.outputs}
    # Of an edited record it may be anything; the audit names that record.
    if (source := stated_source(record, configuration)) is not None:
        url = record.facts.get("url", ", ".join(map(str, source.get("urls") or ())))
        return {
            "url": str(url),
            "doi": source.get("doi"),
            "licence": source.get("licence"),
            "filename": source.get("filename"),
            "fetched": record.usage.ended,
            "sha256": digests,
        }
    return {"generated_by": record.rule, **{k: v for k, v in record.params.items() if k != "code"}, "sha256": digests}


def _details(record: Record, configuration: Mapping[str, Any]) -> Iterator[str]:
    source = source_of(record, configuration)
    if source is None:
        return
    for key, value in source.items():
        if key == "sha256":
            yield from (f"sha256 {digest}  {name}" for name, digest in value.items())
        else:
            yield f"{key.replace('_', ' ')}: {value if value is not None else 'not stated'}"


def summary(lineage: Lineage) -> dict[str, list[str]]:
    """Return what a reader asks first: seeds, fits, caches, weights, data and commits."""
    records = lineage.records.values()

    def outputs(*rules: str) -> list[str]:
        return [output.path for record in records if record.rule in rules for output in record.outputs]

    return {
        "seeds": [str(seed) for seed in sorted({r.seed for r in records if r.rule == "fit" and r.seed is not None})],
        "fits": outputs("fit"),
        "caches": outputs("features"),
        "weights": outputs("download_weights", "train_backbone"),
        "data": outputs("download", "generate"),
        "commits": sorted({f"{r.git.commit or 'unknown'}{' (changed)' if r.git.dirty else ''}" for r in records}),
    }


def as_text(lineage: Lineage) -> str:
    """Return the lineage as a tree; a job that comes again is named, with its own lineage left out."""
    lines = [lineage.what, *(f"  {address} = {value}" for address, value in lineage.values.items())]
    seen: set[str] = set()

    def visit(path: str, indent: str, last: bool) -> None:
        record = lineage.chain.records[path]
        again = path in seen
        seen.add(path)
        lines.append(f"{indent}{'└─ ' if last else '├─ '}{title(path, record)}{' (as above)' if again else ''}")
        inner = indent + ("   " if last else "│  ")
        if again:
            return
        before = lineage.before(path)
        bar = inner + ("│  " if before else "   ")
        if record.inputs:
            for output in record.outputs:
                lines.append(f"{bar}{output.path}  sha256 {output.sha256[:16]}…")
        lines.extend(f"{bar}{detail}" for detail in _details(record, lineage.configuration))
        lines.extend(f"{bar}of unknown origin: {name}" for name in lineage.unknown(path))
        for number, other in enumerate(before):
            visit(other, inner, number == len(before) - 1)

    visit(lineage.start, "", True)
    lines.append("")
    for name, values in summary(lineage).items():
        lines.append(f"{name}: {', '.join(values) or 'none'}")
    return "\n".join(lines) + "\n"


def as_mermaid(lineage: Lineage) -> str:
    """Return the lineage as a Mermaid flowchart, from the sources to what was asked for."""
    number = {path: f"j{i}" for i, path in enumerate(lineage.records)}
    lines = ["flowchart LR"]
    for path, record in lineage.records.items():
        source = source_of(record, lineage.configuration)
        label = title(path, record)
        if source is not None and "url" in source:
            stated = (f"{key}: {source[key] or 'not stated'}" for key in ("doi", "licence"))
            label = "<br/>".join([label, source["url"], *stated])
        left, right = ("([", "])") if source is not None else ("[", "]")
        text = label.replace('"', "&quot;")
        lines.append(f'  {number[path]}{left}"{text}"{right}')
    lines += [f"  {number[other]} --> {number[path]}" for path in lineage.records for other in lineage.before(path)]
    target = lineage.what.replace('"', "&quot;")
    return "\n".join([*lines, f'  {number[lineage.start]} --> target(["{target}"])', ""])


def as_json(lineage: Lineage) -> dict[str, Any]:
    """Return the lineage as plain values."""
    return {
        "what": lineage.what,
        "values": lineage.values,
        "record": lineage.start,
        "summary": summary(lineage),
        "jobs": {
            path: {
                "digest": record.digest,
                "rule": record.rule,
                "wildcards": record.wildcards,
                "seed": record.seed,
                "outputs": {output.path: output.sha256 for output in record.outputs},
                "from": lineage.before(path),
                "of_unknown_origin": lineage.unknown(path),
                "source": source_of(record, lineage.configuration),
            }
            for path, record in lineage.records.items()
        },
    }


def runs(results: Path) -> list[str]:
    """Return the names of the runs in a folder of results that have records."""
    if not results.is_dir():
        return []
    folders = (path for path in sorted(results.iterdir()) if path.is_dir() and path.name != "cache")
    return [path.name for path in folders if Folder(results, path.name).records.is_dir()]
