"""What the evidence BLL needs of each shard: a map over shards, reduced by the fit.

Only for fits whose features are known before them: those of the pretrained head, and of the fit that they start
from. They are shared by all fits of a run with the same head.
"""

if CONFIG.backbone is not None:

    rule summarise_shard:
        input:
            features=FEATURES / "{dataset}/{part}" / SHARD,
            pretrained=PRETRAINED,
            fit=fit_of_head,
        output:
            statistics=RUN / "statistics" / f"{SUMMARY}.safetensors",
        log:
            RUN / "logs/summarise_shard" / f"{SUMMARY}.log",
        benchmark:
            RUN / "benchmarks/summarise_shard" / f"{SUMMARY}.tsv"
        wildcard_constraints:
            kind="[^/]+",
            head="backbone|[^/]+/[^/]+/[^/]+/seed[0-9]+",
        conda:
            "../envs/conda-cpu.yaml"
        threads: cores(to_summarise)
        resources:
            **asked(to_summarise),
        params:
            head=lambda w: (
                str(PRETRAINED)
                if w.head == "backbone"
                else str(head_given(w.kind, w.head.split("/")[0], w.head))
            ),
            code=lambda w: code("summarise_shard.py", f"forceuq.methods.{w.kind}"),
        message:
            "Summarising {wildcards.dataset}, {wildcards.part}, shard {wildcards.shard} of {wildcards.shards}"
        script:
            "../workflow_scripts/summarise_shard.py"
