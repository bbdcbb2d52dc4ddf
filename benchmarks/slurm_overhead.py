"""How long jobs that could start wait until Snakemake has submitted them to Slurm, and how long a dry run takes.

    python benchmarks/slurm_overhead.py [seeds] [seconds a job]

The paper's configuration (rMD17 and MPtrj together, each method with that many seeds; the default gives 2,193 jobs)
goes through ``snakemake --profile slurm`` on the tests' cluster (Slurm must be installed), with this repository's
profile and rules. Only what runs inside the jobs is replaced: they sleep, from half as long to one and a half times as
long, and make empty outputs. A job could start when its inputs are there and fewer jobs than the profile allows are on
their way; the i-th such moment is compared with the i-th submission.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from snakemake.utils import update_config

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/slurm")]

from cluster import Cluster  # noqa: E402
from project import COPIED  # noqa: E402

from forceuq.configuration import load_configuration  # noqa: E402

CONFIGS = ("config/rmd17.yaml", "config/mptrj.yaml")
MAX_JOBS = 100
SITE = {"account": "lab", "status_seconds": 3, "max_jobs": MAX_JOBS}
SBATCH = """\
#!/bin/sh
# Submits a job that sleeps and makes the outputs of the job that it stands for.
while [ $# -gt 0 ]; do
  case $1 in
    --job-name) name=$2; shift ;;
    --output) output=$2; shift ;;
    --comment) comment=$2; shift ;;
    --wrap=*) targets=${1#*--target-jobs }; targets=${targets%% --allowed-rules*} ;;
  esac
  shift
done
set -- --parsable --job-name "$name" --output "$output" --comment "$comment" -p cpu -n1 --mem=10
exec {sbatch} "$@" --wrap="sh {job} $targets"
"""
JOB = """\
# The shell's own commands as far as they go: on a real cluster this is other machines' work.
make_outputs() {{
  while case $1 in */*) true ;; *) false ;; esac; do set -- "${{1%%/*}}%${{1#*/}}"; done
  while read -r output; do
    case ${{output##*/}} in
      *.*) [ -d "${{output%/*}}" ] || mkdir -p "${{output%/*}}"; echo > "$output" ;;
      *) mkdir -p "$output" ;;
    esac
  done < "{folder}/outputs/$1"
}}
sleep $(({shortest} + SLURM_JOB_ID * 7919 % {span}))
# In a group calibrate comes before metrics, which must not be older.
for target in "$@"; do case $target in calibrate*) make_outputs "$target" ;; esac; done
for target in "$@"; do case $target in calibrate*) ;; *) make_outputs "$target" ;; esac; done
"""


@dataclass
class Submission:
    """One Slurm job: a job of the workflow, or a group of them."""

    jobs: set[str] = field(default_factory=set)
    inputs: set[str] = field(default_factory=set)
    outputs: set[str] = field(default_factory=set)


def prepare(folder: Path, seeds: int) -> None:
    """Make a copy of the project in which everything that is not queued (downloads) is there already."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    (folder / "slurm/site.yaml").write_text(yaml.safe_dump(SITE))
    values: dict[str, object] = {}
    for file in CONFIGS:
        update_config(values, yaml.safe_load((ROOT / file).read_text()))
    own = {name: method for name, method in values["methods"].items() if method["kind"] != "ensemble"}
    change = {
        "run": "sleeping",
        "methods": {name: {"seeds": list(range(seeds))} if name in own else None for name in values["methods"]},
    }
    (folder / "sleeping.yaml").write_text(yaml.safe_dump(change))
    update_config(values, change)
    config = load_configuration(values)
    cache = folder / "results/cache"
    backbone = cache / "backbones" / f"{config.backbone.name}-{config.backbone.identity}"
    raws = [cache / "datasets" / f"{name}-{data.identity}" / "raw" for name, data in config.datasets.items()]
    for file in (*raws, backbone / config.backbone.weights.filename, backbone / "head.safetensors"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def put_to_sleep(cluster: Cluster, folder: Path, seconds: int) -> None:
    """Put another sbatch before the cluster's own."""
    (folder / "outputs").mkdir(parents=True)
    (folder / "job.sh").write_text(JOB.format(shortest=seconds // 2, span=seconds + 1, folder=folder))
    sbatch = cluster.folder / "bin/sbatch"
    real = sbatch.rename(cluster.folder / "bin/real-sbatch")
    sbatch.write_text(SBATCH.replace("{sbatch}", str(real)).replace("{job}", str(folder / "job.sh")))
    sbatch.chmod(0o755)


def waits(events: list[dict]) -> list[float]:
    """Return, for each submission, the seconds since it could have been made."""
    submissions: list[Submission] = []
    finished: dict[str, float] = {}
    submitted = []
    for event in events:
        if event["event"] == "group" or (event["event"] == "announced" and not event["grouped"]):
            submissions.append(Submission())
        if event["event"] == "announced":
            submissions[-1].jobs.add(str(event["job"]))
            submissions[-1].inputs.update(event["inputs"])
            submissions[-1].outputs.update(event["outputs"])
        elif event["event"] == "finished":
            finished[str(event["job"])] = event["time"]
        elif event["event"] == "submitted":
            submitted.append(event["time"])
    began = events[0]["time"]
    ended = {}
    for submission in submissions:
        end = max(finished[job] for job in submission.jobs)
        ended.update(dict.fromkeys(submission.outputs, end))
    ready = [max((ended[i] for i in s.inputs - s.outputs if i in ended), default=began) for s in submissions]
    ends = [max(finished[job] for job in s.jobs) for s in submissions]
    moments = sorted([*((t, 1) for t in ready), *((t, 0) for t in ends)])
    could_start, waiting, running = [], 0, 0
    for moment, is_ready in moments:
        waiting, running = (waiting + 1, running) if is_ready else (waiting, running - 1)
        while waiting and running < MAX_JOBS:
            could_start.append(moment)
            waiting, running = waiting - 1, running + 1
    return [done - could for could, done in zip(could_start, sorted(submitted), strict=True)]


def main() -> None:
    seeds, seconds = (int(value) for value in [*sys.argv[1:], *["6", "30"][len(sys.argv) - 1 :]])
    folder = Path(tempfile.mkdtemp(prefix="fq", dir="/tmp"))
    cluster = Cluster(folder / "s")
    project, sleeping = folder / "project", folder / "sleeping"
    project.mkdir()
    try:
        prepare(project, seeds)
        cluster.start()
        put_to_sleep(cluster, sleeping, seconds)
        environment = {
            **cluster.environment(),
            "PYTHONPATH": f"{project}:{ROOT}/benchmarks/slurm_sleeping",
            "SLEEPING_JOBS": str(sleeping),
        }
        command = [sys.executable, "-m", "snakemake", "--profile", "slurm", "--until", "metrics"]
        command += ["--configfile", *CONFIGS, "sleeping.yaml"]
        run = {"cwd": project, "env": environment, "capture_output": True, "text": True}
        began = time.perf_counter()
        done = subprocess.run([*command, "--logger", "times"], check=False, **run)
        took = time.perf_counter() - began
        if done.returncode:
            sys.exit(f"{done.stdout}\n{done.stderr}"[-5000:])
        events = [json.loads(line) for line in (sleeping / "events").read_text().splitlines()]
        dry_took = []
        for _ in range(3):
            began = time.perf_counter()
            dry = subprocess.run([*command, "--dry-run"], check=False, **run)
            dry_took.append(time.perf_counter() - began)
    finally:
        cluster.stop()
        shutil.rmtree(folder)
    of_all = sorted(waits(events))
    jobs = sum(event["event"] == "finished" for event in events)
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"{jobs} jobs in {len(of_all)} submissions, {took:.0f} s; {load}")
    print(
        f"from could start to submitted: median {statistics.median(of_all):.2f} s,"
        f" 90 % below {of_all[int(0.9 * len(of_all))]:.2f} s, at most {of_all[-1]:.2f} s"
    )
    nothing = "Nothing to be done" in dry.stdout + dry.stderr or re.search(r"^total +0$", dry.stdout, re.MULTILINE)
    found = "nothing" if nothing else "something"
    print(f"dry run that finds {found} to do, three times: {', '.join(f'{seconds:.1f}' for seconds in dry_took)} s")
    if not nothing:
        print(dry.stdout[-3000:])


if __name__ == "__main__":
    main()
