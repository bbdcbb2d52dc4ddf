"""The published files that results follow from, and their licences."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from forceuq.files import whole_file

_NO_DERIVATIVES = re.compile(r"(^|[^a-z])nd($|[^a-z])|no.?deriv", re.IGNORECASE)


@dataclass(frozen=True)
class PublishedSource:
    """A data set or a backbone's weights, as the configuration names it."""

    name: str
    kind: str
    licence: str | None
    doi: str | None
    url: str | None
    sha256: str | None


def configured_sources(configuration: Mapping[str, Any]) -> list[PublishedSource]:
    """Return the sources that a configuration (plain values) names; generated data sets without address or licence."""
    found = []
    for name, dataset in (configuration.get("datasets") or {}).items():
        origin = dataset.get("download")
        kind = "data set" if origin else "data set, generated"
        found.append(_source(f"{dataset.get('label') or name}", kind, origin or {}))
    if backbone := configuration.get("backbone"):
        found.append(_source(str(backbone["name"]), "weights", backbone["weights"]))
    return found


def _source(name: str, kind: str, origin: Mapping[str, Any]) -> PublishedSource:
    urls = origin.get("urls") or [None]
    return PublishedSource(name, kind, origin.get("licence"), origin.get("doi"), urls[0], origin.get("sha256"))


def write_sources(configuration: Mapping[str, Any], output: Path) -> None:
    """Write the sources and their licences as CSV, and as Markdown beside it.

    Args:
        configuration: as plain values.
        output: the CSV file.
    """
    frame = pd.DataFrame(
        [
            {
                "source": source.name,
                "what": source.kind,
                "licence": source.licence or ("made by the workflow" if "generated" in source.kind else "not stated"),
                "may be passed on": _passed_on(source),
                "doi": source.doi,
                "url": source.url,
                "sha256": source.sha256,
            }
            for source in configured_sources(configuration)
        ]
    )
    with whole_file(output) as temporary:
        frame.to_csv(temporary, index=False)
    head = f"| {' | '.join(frame.columns)} |\n|{' --- |' * len(frame.columns)}\n"
    cells = (["" if pd.isna(x) else str(x).replace("|", "\\|") for x in row] for row in frame.to_numpy())
    rows = "".join(f"| {' | '.join(row)} |\n" for row in cells)
    with whole_file(output.with_suffix(".md")) as temporary:
        temporary.write_text(head + rows, encoding="utf-8")


def _passed_on(source: PublishedSource) -> str:
    if source.kind == "weights":  # what is made with them are data of the data sets
        return "as their licence says" if source.licence else "not known"
    if source.kind == "data set" and (source.licence is None or no_derivatives(source.licence)):
        return "not its structures, nor numbers of single atoms"
    return "yes"


def no_derivatives(licence: str) -> bool:
    """Return whether a licence forbids to pass on altered versions: CC-BY-NC-ND-4.0, for one."""
    return bool(_NO_DERIVATIVES.search(licence))
