"""The pretrained model: its weights and its force head; and the training of forceuq-small."""

if CONFIG.backbone is not None:

    rule download_weights:
        output:
            weights=CACHE / "backbones" / BACKBONE / CONFIG.backbone.weights.filename,
        log:
            CACHE / "logs/download_weights" / f"{BACKBONE}.log",
        benchmark:
            CACHE / "benchmarks/download_weights" / f"{BACKBONE}.tsv"
        localrule: True
        conda:
            "../envs/conda-cpu.yaml"
        params:
            # As for data sets: a function of `output` is no reason to run again.
            source=lambda w, output: CONFIG.backbone.weights.model_dump(mode="json"),
            lock=str(RESULTS / "downloads.lock.json"),
            code=code("download.py"),
        message:
            "Fetching the weights of the backbone"
        script:
            "../workflow_scripts/download.py"

    rule export_head:
        input:
            weights=rules.download_weights.output.weights,
        output:
            head=CACHE / "backbones" / BACKBONE / "head.safetensors",
        log:
            CACHE / "logs/export_head" / f"{BACKBONE}.log",
        benchmark:
            CACHE / "benchmarks/export_head" / f"{BACKBONE}.tsv"
        localrule: True
        conda:
            "../envs/conda-cpu.yaml"
        params:
            kind=CONFIG.backbone.kind,
            options=CONFIG.backbone.options.model_dump(mode="json"),
            code=code("export_head.py", f"forceuq.backbones.{CONFIG.backbone.kind}"),
        message:
            "Reading the force head of the backbone"
        script:
            "../workflow_scripts/export_head.py"


if CONFIG.train_backbone is not None:

    rule generate_training_frames:
        output:
            frames=RUN / "training_frames.parquet",
        log:
            RUN / "logs/generate_training_frames.log",
        benchmark:
            RUN / "benchmarks/generate_training_frames.tsv"
        conda:
            "../envs/conda-cpu.yaml"
        threads: 2
        resources:
            mem_mb=lambda wildcards, attempt: 4000 * attempt,
            runtime=lambda wildcards, attempt: 120 * attempt,
        params:
            options=CONFIG.train_backbone.model_dump(mode="json"),
            code=code("generate_training_frames.py"),
        message:
            "Labelling molecules and alloys with GFN2-xTB and EMT"
        script:
            "../workflow_scripts/generate_training_frames.py"

    rule train_backbone:
        input:
            frames=rules.generate_training_frames.output.frames,
        output:
            weights=RUN / "forceuq-small.safetensors",
            record=RUN / "forceuq-small.json",
        log:
            RUN / "logs/train_backbone.log",
        benchmark:
            RUN / "benchmarks/train_backbone.tsv"
        conda:
            "../envs/conda-cpu.yaml"
        threads: 2
        resources:
            mem_mb=lambda wildcards, attempt: 4000 * attempt,
            runtime=lambda wildcards, attempt: 240 * attempt,
        params:
            options=CONFIG.train_backbone.model_dump(mode="json"),
            checkpoints=str(RUN / "checkpoints/forceuq-small"),
            code=code("train_backbone.py"),
        message:
            "Training forceuq-small"
        script:
            "../workflow_scripts/train_backbone.py"
