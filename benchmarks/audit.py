"""How long an audit takes, beside what hashing alone takes; and what the records cost the jobs of a run.

    python benchmarks/audit.py [jobs] [gigabytes]     # a simulated run in a temporary folder
    python benchmarks/audit.py results/<run>          # the share of each rule's time that its records took

The simulated run has fits, predictions and metrics on shared caches, with true records of sparse files (they take no
disk, and hash as fast as others from memory).
"""

import csv
import hashlib
import os
import resource
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from forceuq.provenance.audit import audit
from forceuq.provenance.chain import load_chain
from forceuq.provenance.digests import Stat, tree_digest
from forceuq.provenance.jobs import plain
from forceuq.provenance.ledger import write_ledger
from forceuq.provenance.places import Folder, Made, keep
from forceuq.provenance.schema import file_bytes, sealed

SHARDS = 4  # files in a directory output
CACHES = 20  # parts whose features are cached
GB = 10**9


class Simulation:
    """Writes outputs and their records without running anything."""

    def __init__(self, results: Path, size: int) -> None:
        self.results, self.size = results, size
        digest = hashlib.sha256()
        for start in range(0, size, 2**20):
            digest.update(bytes(min(2**20, size - start)))
        self.sha256 = digest.hexdigest()
        self.records: dict[str, tuple[str, str, str, int]] = {}
        self.kept = {name: keep(Folder(results, name), b"numpy==2\n") for name in ("cache", "demo")}

    def job(self, folder: str, rule: str, place: str, output: str, inputs: list[str]) -> None:
        """Write a directory of sparse files, its record and its note."""
        path = self.results / output
        path.mkdir(parents=True)
        for shard in range(SHARDS):
            with (path / f"{shard}.parquet").open("wb") as handle:
                handle.truncate(self.size)
        files = {f"{shard}.parquet": (self.sha256, self.size) for shard in range(SHARDS)}
        made = {
            "name": "out",
            "path": output,
            "sha256": tree_digest(files),
            "size": SHARDS * self.size,
            "directory": True,
            "files": [{"path": name, "sha256": sha256, "size": size} for name, (sha256, size) in files.items()],
            "record": None,
        }
        taken = []
        for name in inputs:
            record, digest, sha256, size = self.records[name]
            reference = {"path": record, "digest": digest}
            taken.append({**made, "path": name, "files": None, "record": reference, "sha256": sha256, "size": size})
        modules = {f"forceuq.module{i}": self.kept[folder] for i in range(30)}
        values = plain(
            {
                "schema": "forceuq.record",
                "version": 1,
                "rule": rule,
                "wildcards": {"method": place},
                "run": folder,
                "seed": 0,
                "params": {"options": {f"option{i}": i / 7 for i in range(20)}, "code": "0" * 16},
                "facts": {},
                "inputs": taken,
                "outputs": [made],
                "code": {"fingerprint": "0" * 16, "modules": modules},
                "git": {"commit": "0" * 40, "dirty": False, "diff": None},
                "software": {
                    "python": "3.11",
                    "packages": self.kept[folder],
                    "versions": {},
                    "lock": None,
                    "lock_sha256": None,
                },
                "machine": {
                    "host": "host",
                    "system": "Linux",
                    "cpu": "CPU",
                    "cpus": 2,
                    "gpu": None,
                    "gpu_driver": None,
                    "cuda": None,
                    "slurm_job_id": None,
                    "threads": 1,
                    "thread_settings": {},
                },
                "usage": {
                    "started": "2025-01-01T00:00:00+00:00",
                    "ended": "2025-01-01T00:00:01+00:00",
                    "seconds": 1.0,
                    "recording_seconds": 0.01,
                    "cpu_seconds": 1.0,
                    "peak_memory_bytes": 1,
                    "peak_gpu_memory_bytes": None,
                },
            }
        )
        values = sealed(values)
        records = self.results / folder / "records"
        record = records / rule / f"{place}.json"
        note = records / ".made" / f"{output.partition('/')[2]}.json"
        stats = {f"{shard}.parquet": vars(Stat.of(path / f"{shard}.parquet")) for shard in range(SHARDS)}
        leads = vars(Made(f"{rule}/{place}.json", {})) | {"stats": stats}
        # Not through whole_file: ten thousand times waiting for the disk is not what is measured.
        for file, content in ((record, values), (note, sealed(leads))):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(file_bytes(content))
        name = record.relative_to(self.results).as_posix()
        self.records[output] = (name, values["digest"], made["sha256"], made["size"])


def simulate(results: Path, jobs: int, size: int) -> None:
    simulation = Simulation(results, size)
    caches = [f"cache/features/part{i}" for i in range(CACHES)]
    for i, cache in enumerate(caches):
        simulation.job("cache", "features", f"part{i}", cache, [])
    metrics = []
    for i in range((jobs - CACHES - 1) // 3):
        before = [caches[i % CACHES], caches[(i + 1) % CACHES]]
        simulation.job("demo", "fit", str(i), f"demo/fits/{i}", before)
        simulation.job("demo", "predict", str(i), f"demo/predictions/{i}", [f"demo/fits/{i}", *before])
        simulation.job("demo", "metrics", str(i), f"demo/metrics/{i}", [f"demo/predictions/{i}"])
        metrics.append(f"demo/metrics/{i}")
    simulation.job("demo", "merge_metrics", "all", "demo/merged", metrics)
    log = results / "demo/logs/ledger.log"
    write_ledger(log, "ledger", [results / "demo/merged"], {"run": "demo"}, results / "demo/ledger.json")


def simulated(jobs: int, gigabytes: float) -> None:
    cores = len(os.sched_getaffinity(0))
    size = max(1, int(gigabytes * GB / jobs / SHARDS))
    block = bytes(2**26)
    began = time.perf_counter(), time.process_time()
    for _ in range(8):
        hashlib.sha256(block)
    speed = 8 * len(block) / GB / (time.process_time() - began[1])
    share = (time.process_time() - began[1]) / (time.perf_counter() - began[0])
    print(f"SHA-256 {speed:.2f} GB/s a core; {cores} cores, of one of which this process gets {share:.0%}")
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        simulate(results, jobs, size)
        before = time.process_time()
        report = audit(results / "demo")
        cpu = time.process_time() - before
    grave = [finding for finding in report.findings if finding.path != "demo/ledger.json"]
    assert not grave, grave[:3]
    alone = report.size / GB / speed
    print(f"{report.jobs} jobs, {report.files} files, {report.size / GB:.1f} GB")
    print(f"audit               {report.seconds:8.1f} s, processor time {cpu:.1f} s")
    print(f"  hashing alone     {alone:8.1f} s of processor time")
    print(f"  the rest          {cpu - alone:8.1f} s, {1000 * (cpu - alone) / report.jobs:.2f} ms a job")
    print(f"100 GB at this speed: {100 / speed / cores / 60:.1f} min of {cores} cores, beside the rest")
    print(f"peak memory         {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def shares(run: Path) -> None:
    """Print what the records took of each rule's time, which Snakemake measured (process start included)."""
    times: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for path, record in load_chain(run.parent, run.name).records.items():
        benchmark = run.parent / path.replace("/records/", "/benchmarks/", 1).replace(".json", ".tsv")
        with benchmark.open(encoding="utf-8") as handle:
            rows: list[dict[str, Any]] = list(csv.DictReader(handle, delimiter="\t"))
        for here in (times[record.rule], times["(all)"]):
            here[0] += 1
            here[1] += float(rows[-1]["s"])
            here[2] += record.usage.recording_seconds
    for rule, (number, seconds, recording) in sorted(times.items()):
        print(f"{rule:24s} {number:5.0f} jobs {seconds:9.1f} s, records {recording:7.2f} s: {recording / seconds:.1%}")


def main() -> None:
    if len(sys.argv) == 2 and Path(sys.argv[1]).is_dir():
        shares(Path(sys.argv[1]).absolute())
        return
    jobs, gigabytes = (float(value) for value in [*sys.argv[1:], *["10000", "2"][len(sys.argv) - 1 :]])
    simulated(int(jobs), gigabytes)


if __name__ == "__main__":
    main()
