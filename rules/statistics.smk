"""What the evidence BLL needs of each shard: a map over shards, reduced by the fit.

Only for fits whose features are known before them: those of the pretrained head, and of the fit that they start
from. They are shared by all fits of a run with the same head.
"""

from forceuq.methods import head_before_fit

SUMMARY = f"{{kind}}/{{head}}/{{dataset}}/{{part}}/{SHARD}"
PRETRAINED = CACHE / "backbones" / BACKBONE / "head.safetensors"


def head_given(kind, method, start):
    """The head whose features a fit summarises, if that is there before it; start: folder of the fit it starts from."""
    options = CONFIG.methods[method].options
    return head_before_fit(kind, options, PRETRAINED, start and RUN / "fits" / start)


def statistics_of(wildcards):
    """The statistics of all shards that a fit is made from; none where it makes them itself."""
    method = CONFIG.methods[wildcards.method]
    start = method.starts_from
    if start is not None:
        start = FIT.format(**{**dict(wildcards.items()), "method": start})
    if (
        not CONFIG.features.statistics_by_shard
        or head_given(method.kind, wildcards.method, start) is None
    ):
        return []
    return [
        RUN
        / "statistics"
        / f"{method.kind}/{start or 'backbone'}"
        / folder.relative_to(FEATURES).with_suffix(".safetensors")
        for folder in feature_folders(task_of(wildcards).train)
    ]


def fit_of_head(wildcards):
    """The fit that a head is from: none for the pretrained one."""
    return [] if wildcards.head == "backbone" else [RUN / "fits" / wildcards.head]


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
