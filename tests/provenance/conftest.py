"""A small tree of results, made by jobs that do nothing but write files and records."""

import csv
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from forceuq.provenance.jobs import recorded
from forceuq.provenance.ledger import write_ledger

METHODS = {"bll": "BLL, nlml", "swag": "SWAG"}
SEEDS = (0, 1)
DATASET = "alloys"
SPLITS = ("validation", "id", "ood")
SOURCE = {
    "urls": ["https://example.org/alloys.json", "https://mirror.example.org/alloys.json"],
    "filename": "alloys.json",
    "doi": "10.1234/alloys",
    "licence": "CC-BY-4.0",
}
WEIGHTS = {"urls": ["https://example.org/weights"], "filename": "weights", "doi": None, "licence": "Apache-2.0"}


@dataclass
class Tree:
    """Results that jobs of the workflow's rules made, with contents from a seed."""

    root: Path
    results: Path
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    @property
    def run(self) -> Path:
        return self.results / "demo"

    def job(self, rule: str, place: str, folder: str = "demo", **description: Any) -> SimpleNamespace:
        """Return the description of a job; paths relative to the results folder."""

        def absolute(named: dict[str, Any]) -> dict[str, Any]:
            return {
                name: [str(self.results / each) for each in path]
                if isinstance(path, list)
                else str(self.results / path)
                for name, path in named.items()
            }

        return SimpleNamespace(
            rule=rule,
            wildcards=description.get("wildcards", {}),
            params={"code": "0" * 16, **description.get("params", {})},
            input=absolute(description.get("input", {})),
            output=absolute(description["output"]),
            log=[str(self.results / folder / "logs" / f"{rule}{place}.log")],
            threads=2,
        )

    def do(self, job: SimpleNamespace, url: str | None = None, content: bytes | None = None) -> None:
        """Run a job: it fills its outputs (a path with a suffix is a file, one without a directory)."""
        with recorded(job, self.root) as recording:
            if url is not None:
                recording.facts["url"] = url
            for path in job.output.values():
                self.fill(Path(path), content)

    def fill(self, path: Path, content: bytes | None = None) -> None:
        """Write a file, or two of them in a directory."""
        files = [path] if path.suffix else [path / "part.bin", path / "report.json"]
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content or self.rng.randbytes(200))

    def caches(self) -> None:
        cache: dict[str, Any] = {"folder": "cache"}
        data, weights = f"cache/datasets/{DATASET}", "cache/backbones/small"
        job = self.job(
            "download", f"/{DATASET}", **cache, params={"source": SOURCE}, output={"raw": f"{data}/raw.json"}
        )
        self.do(job, url=SOURCE["urls"][1])
        job = self.job(
            "download_weights",
            "/small",
            **cache,
            params={"source": WEIGHTS},
            output={"weights": f"{weights}/small.bin"},
        )
        self.do(job, url=WEIGHTS["urls"][0])
        self.do(
            self.job(
                "read_structures",
                f"/{DATASET}",
                **cache,
                input={"raw": f"{data}/raw.json"},
                output={"structures": f"{data}/structures.parquet"},
            )
        )
        self.do(
            self.job(
                "features",
                f"/small/{DATASET}/train",
                **cache,
                input={"structures": f"{data}/structures.parquet", "weights": f"{weights}/small.bin"},
                output={"features": f"cache/features/small/{DATASET}/train"},
            )
        )

    def fit(self, method: str, seed: int, learning_rate: float = 1e-3) -> None:
        """Fit, predict and measure one method with one seed."""
        place = f"{method}/{DATASET}/t/seed{seed}"
        common: dict[str, Any] = {
            "place": f"/{place}",
            "wildcards": {"method": method, "dataset": DATASET, "task": "t", "seed": seed},
        }
        features = [f"cache/features/small/{DATASET}/train"]
        self.do(
            self.job(
                "fit",
                **common,
                params={"options": {"learning_rate": learning_rate}},
                input={"train": features},
                output={"fit": f"demo/fits/{place}"},
            )
        )
        self.do(
            self.job(
                "predict",
                **common,
                input={"split_id": features, "fit": f"demo/fits/{place}"},
                output={"predictions": f"demo/predictions/{place}"},
            )
        )
        self.do(
            self.job(
                "metrics",
                **common,
                params={"splits": list(SPLITS)},
                input={"predictions": f"demo/predictions/{place}"},
                output={"metrics": f"demo/metrics/{place}"},
            )
        )

    def publish(self) -> None:
        """Merge, write the tables and a figure, and the ledger."""
        fits = [f"{method}/{DATASET}/t/seed{seed}" for method in METHODS for seed in SEEDS]
        self.do(
            self.job(
                "merge_metrics",
                "",
                input={"metrics": [f"demo/metrics/{fit}" for fit in fits]},
                output={"metrics": "demo/metrics.parquet"},
            )
        )
        job = self.job(
            "table2",
            "",
            params={
                "splits": [[DATASET, split, f"Alloys {split.upper()}"] for split in SPLITS[1:]],
                "methods": METHODS,
            },
            input={"metrics": "demo/metrics.parquet"},
            output={"csv": "demo/tables/table2.csv"},
        )
        with recorded(job, self.root):
            self.table2()
        job = self.job(
            "costs",
            "",
            params={"fits": fits, "methods": METHODS, "datasets": {DATASET: "Alloys"}},
            input={"fits": [f"demo/fits/{fit}" for fit in fits]},
            output={"csv": "demo/tables/costs.csv"},
        )
        with recorded(job, self.root):
            rows = [{"dataset": DATASET, "method": method, "total": 1.5} for method in METHODS]
            self.write_csv("costs.csv", rows)
        figure = {"png": "demo/figures/shift.png", "csv": "demo/figures/shift.csv"}
        self.do(self.job("shift_figure", "", input={"metrics": "demo/metrics.parquet"}, output=figure))
        self.ledger()

    def table2(self) -> None:
        rows = []
        for split in ("ID", "OOD"):
            for label in METHODS.values():
                for calibration in ("raw", "decoupled (a, b)"):
                    numbers = {
                        f"{metric}_{part}": value
                        for metric in ("mae", "ece", "spearman", "nll")
                        for part, value in (("mean", round(self.rng.random(), 4)), ("std", 0.01), ("n", 2))
                    }
                    names = {"split": f"Alloys {split}", "method": label, "calibration": calibration}
                    rows.append({**names, "source": "this run", **numbers, "note": ""})
        self.write_csv("table2.csv", rows)

    def write_csv(self, name: str, rows: list[dict[str, Any]]) -> None:
        path = self.run / "tables" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def ledger(self) -> None:
        targets = ["demo/tables/table2.csv", "demo/tables/costs.csv", "demo/figures/shift.png"]
        job = self.job("ledger", "", input={"results": targets}, output={"ledger": "demo/ledger.json"})
        with recorded(job, self.root):
            write_ledger(
                Path(job.log[0]), "ledger", map(Path, job.input["results"]), {"run": "demo"}, self.run / "ledger.json"
            )

    def record(self, name: str) -> Path:
        """Return the file of a record: ``table2``, ``fit/bll/...``; of the cache: ``cache:features/...``."""
        folder, _, rest = name.rpartition(":")
        return self.results / (folder or "demo") / "records" / f"{rest}.json"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A finished run. Tests that change it work on a copy: see ``tree``."""
    root = tmp_path_factory.mktemp("project")
    tree = Tree(root, root / "results")
    tree.caches()
    for method in METHODS:
        for seed in SEEDS:
            tree.fit(method, seed)
    tree.publish()
    return tree


@pytest.fixture
def tree(made: Tree, tmp_path: Path) -> Tree:
    """A copy of the finished run, to be changed."""

    shutil.copytree(made.results, tmp_path / "results")
    return Tree(tmp_path, tmp_path / "results", random.Random(1))
