"""Raw data: downloaded or generated; read into structures; cut into parts."""


rule download:
    output:
        raw=CACHE / "datasets/{dataset}/raw",
    log:
        CACHE / "logs/download/{dataset}.log",
    benchmark:
        CACHE / "benchmarks/download/{dataset}.tsv"
    wildcard_constraints:
        dataset=datasets_with("download"),
    localrule: True
    conda:
        "../envs/conda-cpu.yaml"
    params:
        # A function of `output` is no reason to run again: a new mirror, DOI or licence is recorded by the next download
        # only. What decides the bytes is in the folder's name.
        source=lambda w, output: DATASETS[w.dataset].origin["download"],
        lock=str(RESULTS / "downloads.lock.json"),
        code=code("download.py"),
    message:
        "Downloading {wildcards.dataset}"
    script:
        "../workflow_scripts/download.py"


rule generate:
    output:
        raw=CACHE / "datasets/{dataset}/raw",
    log:
        CACHE / "logs/generate/{dataset}.log",
    benchmark:
        CACHE / "benchmarks/generate/{dataset}.tsv"
    wildcard_constraints:
        dataset=datasets_with("generate"),
    conda:
        "../envs/conda-cpu.yaml"
    threads: cores(to_generate)
    resources:
        **asked(to_generate),
    params:
        generator=lambda w: DATASETS[w.dataset].origin["generate"],
        code=lambda w: code(
            "generate.py",
            f"forceuq.data.generators.{DATASETS[w.dataset].origin['generate']['kind']}",
        ),
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
    log:
        CACHE / "logs/read_structures/{dataset}.log",
    benchmark:
        CACHE / "benchmarks/read_structures/{dataset}.tsv"
    conda:
        "../envs/conda-cpu.yaml"
    threads: cores(to_read)
    resources:
        **asked(to_read),
    params:
        kind=lambda w: DATASETS[w.dataset].kind,
        options=lambda w: DATASETS[w.dataset].content_options,
        code=lambda w: code(
            "read_structures.py", f"forceuq.data.sources.{DATASETS[w.dataset].kind}"
        ),
    message:
        "Reading the structures of {wildcards.dataset}"
    script:
        "../workflow_scripts/read_structures.py"


rule split:
    input:
        structures=CACHE / "datasets/{dataset}/structures.parquet",
    output:
        splits=CACHE / "datasets/{dataset}/splits.parquet",
    log:
        CACHE / "logs/split/{dataset}.log",
    benchmark:
        CACHE / "benchmarks/split/{dataset}.tsv"
    conda:
        "../envs/conda-cpu.yaml"
    threads: cores(to_split)
    resources:
        **asked(to_split),
    params:
        kind=lambda w: DATASETS[w.dataset].kind,
        options=lambda w: DATASETS[w.dataset].content_options,
        code=lambda w: code(
            "split.py", f"forceuq.data.sources.{DATASETS[w.dataset].kind}"
        ),
    message:
        "Splitting {wildcards.dataset}"
    script:
        "../workflow_scripts/split.py"
