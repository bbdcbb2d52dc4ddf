"""What is stated of a download: by the run's configuration now, or where that is silent by the record of the job."""

from collections.abc import Mapping
from typing import Any

from forceuq.provenance.schema import Record

# They decide no bytes, so that a download stays when they change, and several runs may state them of one download.
_STATED = ("doi", "licence")


def stated_source(record: Record, configuration: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the source that a job fetched, with DOI and licence as the run's configuration has them.

    Args:
        record: of the job.
        configuration: that of the run's ledger; empty where there is none.

    Returns:
        The source as the job was given it, plain values; None: the job fetched nothing.
    """
    source = record.params.get("source")
    if not isinstance(source, dict):
        return None
    configured = _configured(record, configuration)
    return {**source, **{key: configured[key] for key in _STATED if key in configured}}


def _configured(record: Record, configuration: Mapping[str, Any]) -> Mapping[str, Any]:
    for output in record.outputs:
        kind, name = [*output.path.split("/"), "", ""][1:3]
        if kind == "datasets":
            entry = (configuration.get("datasets") or {}).get(name.rpartition("-")[0]) or {}
            return entry.get("download") or {}
        if kind == "backbones":
            return (configuration.get("backbone") or {}).get("weights") or {}
    return {}
