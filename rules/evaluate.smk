"""Calibration on the validation split, and metrics on every split."""


rule calibrate:
    input:
        predictions=RUN / "predictions" / FIT,
    output:
        calibrations=RUN / "calibrations" / f"{FIT}.json",
    log:
        RUN / "logs/calibrate" / f"{FIT}.log",
    benchmark:
        RUN / "benchmarks/calibrate" / f"{FIT}.tsv"
    group:
        "evaluate"
    conda:
        "../envs/conda-cpu.yaml"
    threads: cores(to_calibrate)
    resources:
        **asked(to_calibrate),
    params:
        kinds=list(CONFIG.calibrations),
        code=code("calibrate.py"),
    message:
        "Calibrating {wildcards.method}, {wildcards.dataset}, {wildcards.task}, seed {wildcards.seed}"
    script:
        "../workflow_scripts/calibrate.py"


rule metrics:
    input:
        predictions=RUN / "predictions" / FIT,
        calibrations=RUN / "calibrations" / f"{FIT}.json",
    output:
        metrics=directory(RUN / "metrics" / FIT),
        curves=directory(RUN / "curves" / FIT),
    log:
        RUN / "logs/metrics" / f"{FIT}.log",
    benchmark:
        RUN / "benchmarks/metrics" / f"{FIT}.tsv"
    group:
        "evaluate"
    conda:
        "../envs/conda-cpu.yaml"
    threads: cores(to_measure)
    resources:
        **asked(to_measure, placed=False),
    params:
        splits=lambda w: ["validation", *task_of(w).evaluate],
        code=code("metrics.py"),
    message:
        "Measuring {wildcards.method}, {wildcards.dataset}, {wildcards.task}, seed {wildcards.seed}"
    script:
        "../workflow_scripts/metrics.py"


rule merge_metrics:
    input:
        metrics=of_all(EVALUATED, RUN / "metrics" / FIT),
        curves=of_all(EVALUATED, RUN / "curves" / FIT),
    output:
        metrics=RUN / "metrics.parquet",
        curves=RUN / "curves.parquet",
    log:
        RUN / "logs/merge_metrics.log",
    benchmark:
        RUN / "benchmarks/merge_metrics.tsv"
    localrule: True
    conda:
        "../envs/conda-cpu.yaml"
    params:
        code=code("merge_metrics.py"),
    message:
        "Merging the metrics"
    script:
        "../workflow_scripts/merge_metrics.py"


rule compare:
    input:
        predictions=lambda w: of_dataset(w.dataset, RUN / "predictions" / FIT),
        calibrations=lambda w: of_dataset(
            w.dataset, RUN / "calibrations" / f"{FIT}.json"
        ),
    output:
        comparisons=RUN / "comparisons/{dataset}.csv",
    log:
        RUN / "logs/compare/{dataset}.log",
    benchmark:
        RUN / "benchmarks/compare/{dataset}.tsv"
    conda:
        "../envs/conda-cpu.yaml"
    threads: cores(to_compare)
    resources:
        **asked(to_compare),
    params:
        fits=lambda w: of_dataset(w.dataset, FIT),
        splits=lambda w: [
            split for data, split, _ in split_labels(False) if data == w.dataset
        ],
        draws=CONFIG.bootstrap_draws,
        code=code("compare.py"),
    message:
        "Asking which methods differ on {wildcards.dataset}"
    script:
        "../workflow_scripts/compare.py"
