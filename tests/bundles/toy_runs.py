"""Finished runs in miniature: jobs that write a few bytes and record themselves as real ones do."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

from forceuq.metric_tables import write_frame
from forceuq.provenance.jobs import recorded
from forceuq.provenance.ledger import write_ledger

DATASETS = {"free": "CC0-1.0", "nd": "CC-BY-NC-ND-4.0", "unstated": None}
STRUCTURES = b"\0\1toy structures: "  # in no source file


# The lock file that a job on this Python finds.
LOCK = f"envs/lock-py{sys.version_info.major}.{sys.version_info.minor}.txt"


class Toy:
    """A results folder in which runs are made."""

    def __init__(self, folder: Path) -> None:
        self.project = folder
        self.results = folder / "results"
        for name, text in {
            "Snakefile": "rule all:\n",
            "rules/data.smk": "# data\n",
            "workflow_scripts/run.py": "print(1)\n",
            LOCK: "a==1\n",
        }.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)

    def job(
        self, where: str, rule: str, inputs: list[str], outputs: dict[str, bytes | pd.DataFrame], **params: Any
    ) -> None:
        """Run a job of the caches or of a run: it writes its outputs."""
        wildcards = params.pop("wildcards", {})
        log = self.results / where / "logs" / rule / ("_".join(wildcards.values()) + ".log" if wildcards else "x.log")
        job = SimpleNamespace(
            rule=rule,
            wildcards=wildcards,
            params={"code": "0123456789abcdef", **params},
            input={"files": [str(self.results / path) for path in inputs]},
            output={"files": [str(self.results / path) for path in outputs]},
            log=[str(log)],
            threads=1,
        )
        with self.script(), recorded(job, root=self.project):
            for path, content in outputs.items():
                file = self.results / path
                if path.startswith(tuple(f"{where}/{kind}/" for kind in ("predictions", "fits"))):
                    file.mkdir(parents=True, exist_ok=True)
                    file = file / "id.parquet"
                file.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    file.write_bytes(content)
                else:
                    write_frame(content, file, "metrics")

    def script(self) -> Any:
        """Let what runs now be the workflow's script."""
        script = str(self.project / "workflow_scripts/run.py")
        return mock.patch.object(sys.modules["__main__"], "__file__", script, create=True)

    def caches(self) -> None:
        """Download the data sets and read their structures."""
        for name, licence in DATASETS.items():
            place = f"cache/datasets/{name}-12345678"
            source = {"urls": [f"https://example.org/{name}"], "filename": name, "licence": licence}
            wildcards = {"dataset": f"{name}-12345678"}
            self.job("cache", "download", [], {f"{place}/raw": name.encode()}, source=source, wildcards=wildcards)
            self.job(
                "cache",
                "read_structures",
                [f"{place}/raw"],
                {f"{place}/structures.parquet": STRUCTURES + name.encode()},
                wildcards=wildcards,
            )

    def run(self, name: str, *, rate: float = 1e-3, shift: float = 0.0, seeds: int = 2) -> Path:
        """Fit and predict on every data set, and write metrics, a table and the ledger."""
        predictions = []
        for dataset in DATASETS:
            for seed in range(seeds):
                wildcards = {"dataset": dataset, "seed": str(seed)}
                fit = f"{name}/fits/{dataset}/seed{seed}"
                structures = f"cache/datasets/{dataset}-12345678/structures.parquet"
                self.job(name, "fit", [structures], {fit: b"fit"}, options={"rate": rate}, wildcards=wildcards)
                predicted = f"{name}/predictions/{dataset}/seed{seed}"
                self.job(name, "predict", [fit, structures], {predicted: b"forces"}, wildcards=wildcards)
                predictions.append(predicted)
        metrics = self.metrics(shift, seeds)
        self.job(name, "merge_metrics", predictions, {f"{name}/metrics.parquet": metrics})
        self.job(name, "table2", [f"{name}/metrics.parquet"], {f"{name}/tables/table2.md": b"| table |"})
        table, ledger = self.results / name / "tables/table2.md", self.results / name / "ledger.json"
        configuration = {
            "run": name,
            "results": "results",
            "datasets": {
                dataset: {
                    "label": dataset,
                    "download": {"urls": [f"https://example.org/{dataset}"], "licence": text},
                }
                for dataset, text in DATASETS.items()
            },
            "methods": {"bll": {"options": {"rate": rate}}},
        }
        log = self.results / name / "logs" / "ledger.log"
        job = SimpleNamespace(
            rule="ledger",
            wildcards={},
            params={"code": "0123456789abcdef"},
            input={"results": [str(table)]},
            output={"ledger": str(ledger)},
            log=[str(log)],
            threads=1,
        )
        with self.script(), recorded(job, root=self.project):
            write_ledger(log, "ledger", [table], configuration, ledger)
        return self.results / name

    def metrics(self, shift: float, seeds: int) -> pd.DataFrame:
        """Return a table of two metrics, of which a shift moves one."""
        rows = [
            {
                "dataset": dataset,
                "task": "t",
                "split": "id",
                "method": "bll",
                "calibration": "none",
                "seed": seed,
                "metric": metric,
                "value": value,
                "n_atoms": 10,
                "note": None if np.isfinite(value) else "undefined",
            }
            for dataset in DATASETS
            for seed in range(seeds)
            for metric, value in (("mae", 1.0 + seed), ("nll", 0.1 * seed + shift), ("ece", float("nan")))
        ]
        return pd.DataFrame(rows)
