"""Tables and figures."""


rule table2:
    input:
        metrics=RUN / "metrics.parquet",
        comparisons=[RUN / f"comparisons/{name}.csv" for name in CONFIG.datasets],
    output:
        csv=RUN / "tables/table2.csv",
        markdown=report(RUN / "tables/table2.md", category="Tables"),
        latex=RUN / "tables/table2.tex",
    log:
        RUN / "logs/table2.log",
    benchmark:
        RUN / "benchmarks/table2.tsv"
    conda:
        "../envs/conda-cpu.yaml"
    params:
        splits=split_labels(with_dataset=True),
        methods=METHOD_LABELS,
        compared=list(CONFIG.datasets),
        paper=(
            {name: dataset.kind for name, dataset in CONFIG.datasets.items()}
            if CONFIG.compare_with_paper
            else {}
        ),
        code=code("table2.py", data=("forceuq/paper_values.yaml",)),
    message:
        "Writing Table 2"
    script:
        "../workflow_scripts/table2.py"


rule costs:
    input:
        fits=of_all(FITTED, RUN / "fits" / FIT),
    output:
        csv=RUN / "tables/costs.csv",
        markdown=report(RUN / "tables/costs.md", category="Tables"),
    log:
        RUN / "logs/costs.log",
    benchmark:
        RUN / "benchmarks/costs.tsv"
    localrule: True
    conda:
        "../envs/conda-cpu.yaml"
    params:
        fits=of_all(FITTED, FIT),
        methods={name: CONFIG.methods[name].label for name in FITTED},
        datasets=DATASET_LABELS,
        code=code("costs.py"),
    message:
        "Writing what the fits cost"
    script:
        "../workflow_scripts/costs.py"


rule surface_figure:
    input:
        predictions=lambda w: RUN
        / "predictions"
        / FIT.format(
            method=CONFIG.figures.surface.method,
            seed=CONFIG.seeds_of(CONFIG.figures.surface.method)[0],
            **w,
        ),
        calibrations=lambda w: RUN
        / "calibrations"
        / "{}.json".format(
            FIT.format(
                method=CONFIG.figures.surface.method,
                seed=CONFIG.seeds_of(CONFIG.figures.surface.method)[0],
                **w,
            )
        ),
    output:
        surface=RUN / "figures/surface/{dataset}/{task}/surface.parquet",
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
    params:
        grid=(
            CONFIG.figures.surface.model_dump(mode="json")
            if CONFIG.figures.surface
            else {}
        ),
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
        png=report(RUN / "figures/recalibration/recalibration.png", category="Figures"),
        pdf=RUN / "figures/recalibration/recalibration.pdf",
        csv=RUN / "figures/recalibration/recalibration.csv",
    log:
        RUN / "logs/recalibration_figure.log",
    benchmark:
        RUN / "benchmarks/recalibration_figure.tsv"
    conda:
        "../envs/conda-cpu.yaml"
    params:
        method=CONFIG.figures.recalibration_method or next(iter(CONFIG.methods), ""),
        before=CONFIG.calibrations[0],
        after=CONFIG.calibrations[-1],
        splits=split_labels(with_dataset=False),
        datasets=DATASET_LABELS,
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
    conda:
        "../envs/conda-cpu.yaml"
    params:
        splits=split_labels(with_dataset=False),
        methods=METHOD_LABELS,
        datasets=DATASET_LABELS,
        calibration=CONFIG.calibrations[-1],
        code=code("shift_figure.py"),
    message:
        "Drawing the metrics as the distribution shifts"
    script:
        "../workflow_scripts/shift_figure.py"
