"""Ask the cluster about itself: propose slurm/site.yaml, or hold the one there is to it."""

import sys
from pathlib import Path

from forceuq.cluster.probe import faults_of, probe, propose
from forceuq.cluster.site import load_site
from forceuq.errors import ForceUQError
from forceuq.files import whole_file

SITE = Path(__file__).parents[1] / "slurm" / "site.yaml"


def main() -> None:
    try:
        cluster = probe()
        if not SITE.exists():
            with whole_file(SITE) as temporary:
                temporary.write_text(propose(cluster), encoding="utf-8")
            print(f"Written, read it through: {SITE}\n\n{SITE.read_text(encoding='utf-8')}", end="")
            return
        faults = faults_of(load_site(SITE), cluster)
    except ForceUQError as error:
        sys.exit(str(error))
    if faults:
        sys.exit(f"{SITE} does not fit this cluster:\n" + "\n".join(f"  {fault}" for fault in faults))
    print(f"{SITE} fits this cluster.")


if __name__ == "__main__":
    main()
