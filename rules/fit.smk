"""Fits of every method to every task, and their predictions."""


rule fit:
    input:
        unpack(lambda w: files_of_datasets(w, task_of(w).train + task_of(w).validation)),
        train=lambda w: feature_folders(task_of(w).train),
        validation=lambda w: feature_folders(task_of(w).validation),
        head=CACHE / "backbones" / BACKBONE / "head.safetensors",
        start=start_of,
        statistics=statistics_of,
    output:
        fit=directory(RUN / "fits" / FIT),
    log:
        RUN / "logs/fit" / f"{FIT}.log",
    benchmark:
        RUN / "benchmarks/fit" / f"{FIT}.tsv"
    wildcard_constraints:
        method=one_of(FITTED),
    conda:
        GPU_ENVIRONMENT
    threads: cores(to_fit)
    resources:
        **asked(to_fit),
        # Whether the caches are read every epoch; a resource, since no result depends on it.
        rereads=lambda w: int(
            effort_of(w.method).epochs > 2 and speed_if_run(w.method) is None
        ),
        devices=devices_of,
    params:
        kind=lambda w: CONFIG.methods[w.method].kind,
        options=options_of_fit,
        checkpoints=str(RUN / "checkpoints" / FIT),
        train_parts=lambda w: part_places(w, task_of(w).train),
        validation_parts=lambda w: part_places(w, task_of(w).validation),
        backbone=backbone_of,
        code=lambda w: code_of_method("fit.py", w),
    message:
        "Fitting {wildcards.method} to {wildcards.dataset}, {wildcards.task}, seed {wildcards.seed}"
    script:
        "../workflow_scripts/fit.py"


rule predict:
    input:
        unpack(splits_to_predict),
        unpack(
            lambda w: files_of_datasets(w, sum(splits_of(w).values(), start=())),
        ),
        fit=RUN / "fits" / FIT,
    output:
        predictions=directory(RUN / "predictions" / FIT),
    log:
        RUN / "logs/predict" / f"{FIT}.log",
    benchmark:
        RUN / "benchmarks/predict" / f"{FIT}.tsv"
    wildcard_constraints:
        method=one_of(FITTED),
    conda:
        GPU_ENVIRONMENT
    threads: cores(to_predict)
    resources:
        **asked(to_predict),
    params:
        kind=lambda w: CONFIG.methods[w.method].kind,
        splits=lambda w: {
            name: part_places(w, parts) for name, parts in splits_of(w).items()
        },
        backbone=backbone_of,
        code=lambda w: code_of_method("predict.py", w),
    message:
        "Predicting with {wildcards.method}, {wildcards.dataset}, {wildcards.task}, seed {wildcards.seed}"
    script:
        "../workflow_scripts/predict.py"


rule combine:
    input:
        members=predictions_of_members,
    output:
        predictions=directory(RUN / "predictions" / FIT),
    log:
        RUN / "logs/combine" / f"{FIT}.log",
    benchmark:
        RUN / "benchmarks/combine" / f"{FIT}.tsv"
    wildcard_constraints:
        method=one_of(COMBINED),
    conda:
        "../envs/conda-cpu.yaml"
    threads: cores(to_combine)
    resources:
        **asked(to_combine),
    params:
        kind=lambda w: CONFIG.methods[w.method].kind,
        options=lambda w: CONFIG.methods[w.method].options.model_dump(mode="json"),
        splits=lambda w: list(splits_of(w)),
        code=lambda w: code_of_method("combine.py", w),
    message:
        "Combining {wildcards.method}, {wildcards.dataset}, {wildcards.task}, ensemble {wildcards.seed}"
    script:
        "../workflow_scripts/combine.py"
