"""The atom-feature cache: the backbone runs once over each structure, ever."""

if CONFIG.backbone is not None:

    rule features:
        input:
            structures=CACHE / "datasets/{dataset}/structures.parquet",
            splits=CACHE / "datasets/{dataset}/splits.parquet",
            weights=rules.download_weights.output.weights,
        output:
            features=directory(
                CACHE / "features" / BACKBONE / "{dataset}/{part}" / SHARD
            ),
        log:
            CACHE / "logs/features" / BACKBONE / "{dataset}/{part}" / f"{SHARD}.log",
        benchmark:
            CACHE
            / "benchmarks/features"
            / BACKBONE
            / "{dataset}/{part}"
            / f"{SHARD}.tsv"
        conda:
            GPU_ENVIRONMENT
        threads: cores(to_cache)
        resources:
            **asked(to_cache),
        params:
            kind=CONFIG.backbone.kind,
            options=CONFIG.backbone.options.model_dump(mode="json"),
            execution=CONFIG.features.model_dump(
                mode="json", exclude={"shards", "statistics_by_shard"}
            ),
            code=code(
                "extract_features.py", f"forceuq.backbones.{CONFIG.backbone.kind}"
            ),
        message:
            "Caching the atom features of {wildcards.dataset}, {wildcards.part}, shard {wildcards.shard} of {wildcards.shards}"
        script:
            "../workflow_scripts/extract_features.py"
