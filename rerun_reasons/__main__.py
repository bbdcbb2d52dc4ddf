"""``python -m rerun_reasons [Snakemake's arguments]``: what would run, and why, in plain words."""

import contextlib
import io
import sys

from snakemake.exceptions import print_exception

from rerun_reasons.plan import plan
from rerun_reasons.summary import summary


def main() -> None:
    """Print the summary, or what Snakemake says of a workflow that it cannot plan."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            jobs, store = plan(sys.argv[1:])
    except Exception as error:
        sys.stderr.write(said.getvalue())
        print_exception(error)
        sys.exit(1)
    print("\n".join(summary(jobs, store)))


if __name__ == "__main__":
    main()
