"""The run's ledger: what ties every record, and through them every file, to one digest."""


rule ledger:
    input:
        results=TARGETS,
    output:
        ledger=RUN / "ledger.json",
    log:
        RUN / "logs/ledger.log",
    benchmark:
        RUN / "benchmarks/ledger.tsv"
    localrule: True
    conda:
        "../envs/conda-cpu.yaml"
    params:
        configuration=CONFIG.model_dump(mode="json"),
        code=code("ledger.py"),
    message:
        "Writing the ledger of the run's records"
    script:
        "../workflow_scripts/ledger.py"
