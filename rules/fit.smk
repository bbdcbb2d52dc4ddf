"""Fits of every method to every task, and their predictions."""


def code_of_method(script, wildcards):
    return code(script, f"forceuq.methods.{CONFIG.methods[wildcards.method].kind}")


def start_of(wildcards):
    """The fit that this one starts from, if its method names one."""
    start = CONFIG.methods[wildcards.method].starts_from
    if start is None:
        return []
    return [
        RUN / "fits" / FIT.format(**{**dict(wildcards.items()), "method": start}),
    ]


rule fit:
    input:
        train=lambda w: feature_folders(task_of(w).train),
        validation=lambda w: feature_folders(task_of(w).validation),
        head=CACHE / "backbones" / BACKBONE / "head.safetensors",
        start=start_of,
    output:
        fit=directory(RUN / "fits" / FIT),
    params:
        kind=lambda w: CONFIG.methods[w.method].kind,
        options=lambda w: CONFIG.methods[w.method].options.model_dump(mode="json"),
        checkpoints=str(RUN / "checkpoints" / FIT),
        code=lambda w: code_of_method("fit.py", w),
    log:
        RUN / "logs/fit" / f"{FIT}.log",
    benchmark:
        RUN / "benchmarks/fit" / f"{FIT}.tsv"
    message:
        "Fitting {wildcards.method} to {wildcards.dataset}, {wildcards.task}, seed {wildcards.seed}"
    script:
        "../workflow_scripts/fit.py"


def splits_to_predict(wildcards):
    """Feature folders by split; the prefix keeps split names apart from Snakemake's own attributes."""
    task = task_of(wildcards)
    splits = {"validation": task.validation, **task.evaluate}
    return {f"split_{name}": feature_folders(parts) for name, parts in splits.items()}


rule predict:
    input:
        unpack(splits_to_predict),
        fit=RUN / "fits" / FIT,
    output:
        predictions=directory(RUN / "predictions" / FIT),
    params:
        kind=lambda w: CONFIG.methods[w.method].kind,
        splits=lambda w: ["validation", *task_of(w).evaluate],
        code=lambda w: code_of_method("predict.py", w),
    log:
        RUN / "logs/predict" / f"{FIT}.log",
    benchmark:
        RUN / "benchmarks/predict" / f"{FIT}.tsv"
    message:
        "Predicting with {wildcards.method}, {wildcards.dataset}, {wildcards.task}, seed {wildcards.seed}"
    script:
        "../workflow_scripts/predict.py"
