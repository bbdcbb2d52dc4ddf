"""Raw data: downloaded or generated; read into structures; cut into parts."""


def datasets_with(origin):
    """A wildcard pattern of the data sets whose raw file is downloaded, or generated."""
    names = [name for name, dataset in DATASETS.items() if origin in dataset.origin]
    return "|".join(names) or "NONE"


rule download:
    output:
        raw=CACHE / "datasets/{dataset}/raw",
    params:
        source=lambda w: DATASETS[w.dataset].origin["download"],
        lock=str(RESULTS / "downloads.lock.json"),
        code=code("download.py"),
    wildcard_constraints:
        dataset=datasets_with("download"),
    log:
        CACHE / "logs/download/{dataset}.log",
    benchmark:
        CACHE / "benchmarks/download/{dataset}.tsv"
    message:
        "Downloading {wildcards.dataset}"
    localrule: True
    script:
        "../workflow_scripts/download.py"


rule generate:
    output:
        raw=CACHE / "datasets/{dataset}/raw",
    params:
        generator=lambda w: DATASETS[w.dataset].origin["generate"],
        code=lambda w: code(
            "generate.py",
            f"forceuq.data.generators.{DATASETS[w.dataset].origin['generate']['kind']}",
        ),
    wildcard_constraints:
        dataset=datasets_with("generate"),
    log:
        CACHE / "logs/generate/{dataset}.log",
    benchmark:
        CACHE / "benchmarks/generate/{dataset}.tsv"
    message:
        "Generating {wildcards.dataset}"
    script:
        "../workflow_scripts/generate.py"


rule read_structures:
    input:
        raw=CACHE / "datasets/{dataset}/raw",
    output:
        structures=CACHE / "datasets/{dataset}/structures.parquet",
        report=CACHE / "datasets/{dataset}/structures.parquet.report.json",
    params:
        kind=lambda w: DATASETS[w.dataset].kind,
        options=lambda w: DATASETS[w.dataset].content_options,
        code=lambda w: code(
            "read_structures.py", f"forceuq.data.sources.{DATASETS[w.dataset].kind}"
        ),
    log:
        CACHE / "logs/read_structures/{dataset}.log",
    benchmark:
        CACHE / "benchmarks/read_structures/{dataset}.tsv"
    message:
        "Reading the structures of {wildcards.dataset}"
    script:
        "../workflow_scripts/read_structures.py"


rule split:
    input:
        structures=CACHE / "datasets/{dataset}/structures.parquet",
    output:
        splits=CACHE / "datasets/{dataset}/splits.parquet",
    params:
        kind=lambda w: DATASETS[w.dataset].kind,
        options=lambda w: DATASETS[w.dataset].content_options,
        code=lambda w: code("split.py", f"forceuq.data.sources.{DATASETS[w.dataset].kind}"),
    log:
        CACHE / "logs/split/{dataset}.log",
    benchmark:
        CACHE / "benchmarks/split/{dataset}.tsv"
    message:
        "Splitting {wildcards.dataset}"
    script:
        "../workflow_scripts/split.py"
