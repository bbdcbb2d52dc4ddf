"""Figures."""


rule surface_figure:
    input:
        predictions=lambda w: [RUN / "predictions" / fit for fit in first_fits(w)],
        calibrations=lambda w: [
            RUN / "calibrations" / f"{fit}.json" for fit in first_fits(w)
        ],
    output:
        surfaces=directory(RUN / "figures/surface/{dataset}/{task}/surfaces"),
        png=report(
            RUN / "figures/surface/{dataset}/{task}/surface.png", category="Figures"
        ),
        pdf=RUN / "figures/surface/{dataset}/{task}/surface.pdf",
        csv=RUN / "figures/surface/{dataset}/{task}/surface.csv",
    log:
        RUN / "logs/surface_figure/{dataset}/{task}.log",
    benchmark:
        RUN / "benchmarks/surface_figure/{dataset}/{task}.tsv"
    conda:
        "../envs/conda-cpu.yaml"
    threads: cores(to_draw_surface)
    resources:
        **asked(to_draw_surface),
    params:
        grid=(
            CONFIG.figures.surface.model_dump(mode="json", exclude={"methods"})
            if CONFIG.figures.surface
            else {}
        ),
        methods=lambda w: [fit.split("/")[0] for fit in first_fits(w)],
        labels=lambda w: [METHOD_LABELS[fit.split("/")[0]] for fit in first_fits(w)],
        title=lambda w: f"{DATASET_LABELS[w.dataset]}: {w.task}",
        code=code("surface_figure.py"),
    message:
        "Drawing the validation likelihood of {wildcards.dataset}, {wildcards.task}"
    script:
        "../workflow_scripts/surface_figure.py"


rule recalibration_figure:
    input:
        metrics=RUN / "metrics.parquet",
    output:
        png=report(
            expand(RUN / "figures/recalibration/{method}.png", method=RECALIBRATED),
            category="Figures",
        ),
        pdf=expand(RUN / "figures/recalibration/{method}.pdf", method=RECALIBRATED),
        csv=expand(RUN / "figures/recalibration/{method}.csv", method=RECALIBRATED),
    log:
        RUN / "logs/recalibration_figure.log",
    benchmark:
        RUN / "benchmarks/recalibration_figure.tsv"
    localrule: True
    conda:
        "../envs/conda-cpu.yaml"
    params:
        methods=RECALIBRATED,
        before=CONFIG.calibrations[0],
        after=CONFIG.calibrations[-1],
        splits=split_labels(with_dataset=False),
        datasets=DATASET_LABELS,
        fitted_to={method: fitted_to(method) for method in RECALIBRATED},
        code=code("recalibration_figure.py"),
    message:
        "Drawing the metrics before and after recalibration"
    script:
        "../workflow_scripts/recalibration_figure.py"


rule shift_figure:
    input:
        metrics=RUN / "metrics.parquet",
    output:
        png=report(RUN / "figures/shift/shift.png", category="Figures"),
        pdf=RUN / "figures/shift/shift.pdf",
        csv=RUN / "figures/shift/shift.csv",
    log:
        RUN / "logs/shift_figure.log",
    benchmark:
        RUN / "benchmarks/shift_figure.tsv"
    localrule: True
    conda:
        "../envs/conda-cpu.yaml"
    params:
        splits=split_labels(with_dataset=False, joined=False),
        methods=METHOD_LABELS,
        datasets=DATASET_LABELS,
        calibration=CONFIG.calibrations[-1],
        code=code("shift_figure.py"),
    message:
        "Drawing the metrics as the distribution shifts"
    script:
        "../workflow_scripts/shift_figure.py"


rule ensemble_size_figure:
    input:
        metrics=RUN / "metrics.parquet",
    output:
        png=report(
            RUN / "figures/ensemble_size/{method}/{dataset}/ensemble_size.png",
            category="Figures",
        ),
        pdf=RUN / "figures/ensemble_size/{method}/{dataset}/ensemble_size.pdf",
        csv=RUN / "figures/ensemble_size/{method}/{dataset}/ensemble_size.csv",
    log:
        RUN / "logs/ensemble_size_figure/{method}/{dataset}.log",
    benchmark:
        RUN / "benchmarks/ensemble_size_figure/{method}/{dataset}.tsv"
    wildcard_constraints:
        method=one_of(SIZED),
    localrule: True
    conda:
        "../envs/conda-cpu.yaml"
    params:
        sizes=lambda w: sizes_of(w.method),
        splits=lambda w: [
            [split, label]
            for name, split, label in split_labels(False)
            if name == w.dataset
        ],
        calibration=CONFIG.calibrations[-1],
        title=lambda w: f"{CONFIG.methods[w.method].label}, {DATASET_LABELS[w.dataset]}",
        code=code("ensemble_size_figure.py"),
    message:
        "Drawing the metrics of {wildcards.method} over its size, {wildcards.dataset}"
    script:
        "../workflow_scripts/ensemble_size_figure.py"


rule strata_figure:
    input:
        structures=lambda w: CACHE
        / "datasets"
        / DATASET_FOLDER[w.dataset]
        / "structures.parquet",
        splits=lambda w: CACHE
        / "datasets"
        / DATASET_FOLDER[w.dataset]
        / "splits.parquet",
    output:
        csv=RUN / "tables/strata/{dataset}.csv",
        markdown=report(RUN / "tables/strata/{dataset}.md", category="Tables"),
        png=report(RUN / "figures/strata/{dataset}.png", category="Figures"),
        pdf=RUN / "figures/strata/{dataset}.pdf",
        histogram=RUN / "figures/strata/{dataset}.csv",
    log:
        RUN / "logs/strata_figure/{dataset}.log",
    benchmark:
        RUN / "benchmarks/strata_figure/{dataset}.tsv"
    wildcard_constraints:
        dataset=one_of(STRATA),
    conda:
        "../envs/conda-cpu.yaml"
    params:
        boundaries=lambda w: list(STRATA[w.dataset]),
        parts=lambda w: parts_of(w.dataset),
        title=lambda w: CONFIG.datasets[w.dataset].label,
        code=code("strata_figure.py"),
    message:
        "Counting the strata of {wildcards.dataset}"
    script:
        "../workflow_scripts/strata_figure.py"
