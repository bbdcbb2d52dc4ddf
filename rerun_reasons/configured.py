"""``python -m rerun_reasons.configured [Snakemake's arguments]``: what the configuration gives each job, as JSON."""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from snakemake.exceptions import print_exception

from forceuq.provenance.jobs import plain
from forceuq.provenance.places import folder_of_log, relative
from rerun_reasons.plan import planned


def configured(arguments: list[str]) -> dict[str, dict[str, Any]]:
    """Return record (relative to the results folder) -> params, of every job that makes the targets, run or not."""
    found = {}
    with planned(arguments) as workflow:
        for job in workflow.dag.jobs:
            if job.log:
                folder, record = folder_of_log(Path(str(job.log[0])), job.rule.name)
                found[relative(record, folder.results)] = plain(dict(job.params.items()))
    return found


def main() -> None:
    """Print them, or what Snakemake says of a workflow that it cannot plan."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            jobs = configured(sys.argv[1:])
    except Exception as error:
        sys.stderr.write(said.getvalue())
        print_exception(error)
        sys.exit(1)
    print(json.dumps(jobs))


if __name__ == "__main__":
    main()
