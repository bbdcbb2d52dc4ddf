"""A finished download stays when only what is said of it changes."""

import json

import pytest
import yaml
from conftest import ROOT, copy_project

from forceuq.configuration import load_configuration

pytestmark = pytest.mark.workflow


def test_a_mirror_a_doi_or_a_licence_downloads_nothing_again(tmp_path):
    project = copy_project(tmp_path)
    (tmp_path / "raw.bin").write_bytes(b"any bytes")
    source = {"urls": ["file:raw.bin"], "filename": "raw.bin", "licence": "CC0-1.0"}
    project.configure(**{"datasets.metals.generate": None, "datasets.metals.download": source})
    demo = yaml.safe_load((ROOT / "config/demo.yaml").read_text())
    demo["datasets"]["metals"] |= {"generate": None, "download": source}
    loaded = load_configuration(demo)
    dataset, backbone = f"metals-{loaded.datasets['metals'].identity}", f"forceuq-small-{loaded.backbone.identity}"
    targets = [
        f"results/cache/datasets/{dataset}/raw",
        f"results/cache/backbones/{backbone}/forceuq-small.safetensors",
    ]
    project.snakemake(*targets)
    record = json.loads((tmp_path / f"results/cache/records/download/{dataset}.json").read_text())
    assert record["params"]["source"]["licence"] == "CC0-1.0"
    weights = demo["backbone"]["weights"]
    mirror = "https://mirror.example.org/a"
    changes = {"licence": "MIT", "doi": "10.1234/a"}
    project.configure(
        **{
            "datasets.metals.download": {**source, **changes, "urls": [*source["urls"], mirror]},
            "backbone.weights": {**weights, **changes, "urls": [mirror, *weights["urls"]]},
        }
    )
    assert project.would_run(*targets) == {}
