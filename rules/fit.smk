"""Fits of every method to every task, and their predictions."""


rule fit:
    input:
        train=lambda w: feature_folders(task_of(w).train),
        validation=lambda w: feature_folders(task_of(w).validation),
        head=CACHE / "backbones" / BACKBONE / "head.safetensors",
        start=start_of,
    output:
        fit=directory(RUN / "fits" / FIT),
    log:
        RUN / "logs/fit" / f"{FIT}.log",
    benchmark:
        RUN / "benchmarks/fit" / f"{FIT}.tsv"
    conda:
        "../envs/conda-cpu.yaml"
    params:
        kind=lambda w: CONFIG.methods[w.method].kind,
        options=lambda w: CONFIG.methods[w.method].options.model_dump(mode="json"),
        checkpoints=str(RUN / "checkpoints" / FIT),
        code=lambda w: code_of_method("fit.py", w),
    message:
        "Fitting {wildcards.method} to {wildcards.dataset}, {wildcards.task}, seed {wildcards.seed}"
    script:
        "../workflow_scripts/fit.py"


rule predict:
    input:
        unpack(splits_to_predict),
        fit=RUN / "fits" / FIT,
    output:
        predictions=directory(RUN / "predictions" / FIT),
    log:
        RUN / "logs/predict" / f"{FIT}.log",
    benchmark:
        RUN / "benchmarks/predict" / f"{FIT}.tsv"
    conda:
        "../envs/conda-cpu.yaml"
    params:
        kind=lambda w: CONFIG.methods[w.method].kind,
        splits=lambda w: ["validation", *task_of(w).evaluate],
        code=lambda w: code_of_method("predict.py", w),
    message:
        "Predicting with {wildcards.method}, {wildcards.dataset}, {wildcards.task}, seed {wildcards.seed}"
    script:
        "../workflow_scripts/predict.py"
