"""What the licences of data sets allow to pass on."""

from collections.abc import Mapping
from typing import Any

from forceuq.provenance.chain import Chain
from forceuq.provenance.stated import stated_source
from forceuq.sources import no_derivatives


def withheld(chain: Chain, record: str, configuration: Mapping[str, Any]) -> str | None:
    """Return why numbers of single atoms that a job wrote must not be passed on, or None when they may.

    They hold reference forces: parts of the data sets that they were computed on. Those of a data set under a licence
    without derivatives stay here, and those of one whose licence is not stated.

    Args:
        chain: the records.
        record: of the job.
        configuration: of the run's ledger; of what it does not state, the records of downloads tell.
    """
    for path in sorted(chain.lineage([record])):
        origin = chain.records[path]
        source = stated_source(origin, configuration)
        is_data = any(output.path.startswith("cache/datasets/") for output in origin.outputs)
        if source is None or not is_data:
            continue
        licence = source.get("licence")
        name = origin.wildcards.get("dataset", path).rpartition("-")[0]
        if licence is None:
            return f"the licence of {name} is not stated in the configuration"
        if no_derivatives(licence):
            return f"the licence of {name}, {licence}, allows no derivatives"
    return None
