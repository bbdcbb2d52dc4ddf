"""Write slurm-resources.md: what the jobs of every rule ask a cluster for, as dry runs print it."""

import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "slurm-resources.md"
CONFIGURATIONS = ("paper",)
# What a dry run reads; not slurm/site.yaml, whose limits would show.
NEEDED = ("Snakefile", "rules", "workflow_scripts", "forceuq", "config", "envs", "profiles", "slurm")
HEAD = """# What jobs ask for

Made by `make slurm-table` from dry runs, with the limits of `slurm/partitions.yaml` (a site's own may be lower). It is
what the first attempt asks for; a retry asks for twice the memory, the time, or both ([slurm.md](slurm.md)), up to what
the largest node has. The estimates and their reasons: `forceuq/cluster/requests.py`. Rules that are not here run on the
login node.
"""


def dry_run(configuration: str) -> str:
    """Return what a dry run prints, in a copy of the project without a site's own file."""
    with tempfile.TemporaryDirectory() as folder:
        for name in NEEDED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__", "site.yaml"))
            else:
                shutil.copy(source, folder)
        # A job with a message is printed without what it asks for.
        for file in Path(folder, "rules").glob("*.smk"):
            file.write_text(re.sub(r"\n +message:\n +\".*\"", "", file.read_text(encoding="utf-8")), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", "-n", "--configfile", f"config/{configuration}.yaml"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        sys.exit(f"the dry run of {configuration} failed:\n{done.stderr}")
    return done.stdout + done.stderr


def requests(printed: str) -> dict[tuple[str, ...], list[str]]:
    """Return (rule, data set, cores, GPUs, memory, time) -> what tells the queued jobs that ask for it."""
    found = defaultdict(list)
    # The jobs of a group stand further in.
    for rule, body in re.findall(r"^ *rule (\w+):\n((?: +\w+: .*\n)+)", printed, re.MULTILINE):
        fields = dict(re.findall(r"^ +(\w+): (.*)$", body, re.MULTILINE))
        asked = dict(re.findall(r"(\w+)=([^,]*)", fields["resources"]))
        if "gpu" not in asked:  # it runs on the login node
            continue
        wildcards = dict(re.findall(r"(\w+)=([^,]*)", fields.get("wildcards", "")))
        dataset = re.sub(r"-[0-9a-f]{8}$", "", wildcards.get("dataset", ""))  # the cache's folders have a digest
        request = (rule, dataset, asked["cpus_per_task"], asked["gpu"], asked["mem_mb"], asked["runtime"])
        found[request].append(wildcards.get("method") or wildcards.get("part") or "")
    return dict(found)


def table(configuration: str) -> str:
    """Return one configuration's table."""
    lines = [
        f"\n## config/{configuration}.yaml\n",
        "| rule | data set | of | jobs | cores | GPUs | memory (GB) | time (h:mm) |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    # Dry runs print jobs in no fixed order.
    for request, jobs in sorted(requests(dry_run(configuration)).items()):
        rule, dataset, cores, gpus, memory, time = request
        names = ", ".join(sorted(set(filter(None, jobs))))
        hours, minutes = divmod(int(time), 60)
        cells = (rule, dataset, names, len(jobs), cores, gpus, f"{int(memory) / 1000:.1f}", f"{hours}:{minutes:02}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return the page."""
    return HEAD + "".join(map(table, CONFIGURATIONS))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
