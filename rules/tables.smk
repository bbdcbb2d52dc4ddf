"""Tables."""


rule table2:
    input:
        metrics=RUN / "metrics.parquet",
        comparisons=[RUN / f"comparisons/{name}.csv" for name in TRAINED],
    output:
        csv=RUN / "tables/table2.csv",
        markdown=report(RUN / "tables/table2.md", category="Tables"),
        latex=RUN / "tables/table2.tex",
    log:
        RUN / "logs/table2.log",
    benchmark:
        RUN / "benchmarks/table2.tsv"
    localrule: True
    conda:
        "../envs/conda-cpu.yaml"
    params:
        splits=split_labels(with_dataset=True),
        methods=METHOD_LABELS,
        fitted_to=FITTED_TO,
        compared=TRAINED,
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


rule table1:
    input:
        fits=of_all(FITTED, RUN / "fits" / FIT),
        predictions=of_all(FITTED, RUN / "predictions" / FIT),
        features=lambda w: features_of_costs(),
    output:
        csv=RUN / "tables/table1.csv",
        markdown=report(RUN / "tables/table1.md", category="Tables"),
        latex=RUN / "tables/table1.tex",
    log:
        RUN / "logs/table1.log",
    benchmark:
        RUN / "benchmarks/table1.tsv"
    localrule: True
    conda:
        "../envs/conda-cpu.yaml"
    params:
        instances=instances_of_costs(),
        methods=METHOD_LABELS,
        datasets=DATASET_LABELS,
        paper=CONFIG.compare_with_paper,
        code=code("table1.py", data=("forceuq/paper_values.yaml",)),
    message:
        "Writing Table 1"
    script:
        "../workflow_scripts/table1.py"


rule sources:
    output:
        csv=RUN / "tables/sources.csv",
        markdown=report(RUN / "tables/sources.md", category="Tables"),
    log:
        RUN / "logs/sources.log",
    benchmark:
        RUN / "benchmarks/sources.tsv"
    localrule: True
    conda:
        "../envs/conda-cpu.yaml"
    params:
        configuration=CONFIG.model_dump(
            mode="json",
            include={
                "datasets": {"__all__": {"label", "download"}},
                "backbone": {"name", "weights"},
            },
        ),
        code=code("sources.py"),
    message:
        "Writing the sources and their licences"
    script:
        "../workflow_scripts/sources.py"
