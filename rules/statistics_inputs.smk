"""Which statistics of shards are made before the fits, and from which heads."""

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
