"""The atom-feature cache: the backbone runs once over each structure, ever."""

if CONFIG.backbone is not None:

    rule features:
        input:
            structures=CACHE / "datasets/{dataset}/structures.parquet",
            splits=CACHE / "datasets/{dataset}/splits.parquet",
            weights=rules.download_weights.output.weights,
        output:
            features=directory(FEATURES / "{dataset}/{part}" / SHARD),
        log:
            CACHE
            / "logs/features"
            / FEATURE_CACHE
            / "{dataset}/{part}"
            / f"{SHARD}.log",
        benchmark:
            CACHE
            / "benchmarks/features"
            / FEATURE_CACHE
            / "{dataset}/{part}"
            / f"{SHARD}.tsv"
        conda:
            GPU_ENVIRONMENT
        threads: cores(to_cache)
        resources:
            **asked(to_cache),
            # They are not params: changing them makes no cache anew.
            **CONFIG.features.execution,
        params:
            kind=CONFIG.backbone.kind,
            options=CONFIG.backbone.options.model_dump(mode="json"),
            precision=CONFIG.features.precision,
            code=code(
                "extract_features.py", f"forceuq.backbones.{CONFIG.backbone.kind}"
            ),
        message:
            "Caching the atom features of {wildcards.dataset}, {wildcards.part}, shard {wildcards.shard} of {wildcards.shards}"
        script:
            "../workflow_scripts/extract_features.py"
