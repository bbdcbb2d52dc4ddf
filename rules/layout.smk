"""Where everything lies: caches shared between runs by identity, and the folder of this run."""

from forceuq.data.sources import load_source

RESULTS = Path(CONFIG.results)
CACHE = RESULTS / "cache"
RUN = RESULTS / CONFIG.run

# Folder name in the cache -> data set. The digest in it makes runs with other options use other folders.
DATASETS = {f"{name}-{dataset.identity}": dataset for name, dataset in CONFIG.datasets.items()}
DATASET_FOLDER = {name: f"{name}-{dataset.identity}" for name, dataset in CONFIG.datasets.items()}
BACKBONE = f"{CONFIG.backbone.name}-{CONFIG.backbone.identity}" if CONFIG.backbone else "none"

# (data set, task name) -> task.
TASKS = {
    (name, task.name): task
    for name, dataset in CONFIG.datasets.items()
    for task in load_source(dataset.kind).tasks(name, dataset.options)
}
# One entry a fit: method, data set, task, seed.
FITS = [
    (method, dataset, task, seed)
    for method in CONFIG.methods
    for dataset, task in TASKS
    for seed in CONFIG.seeds_of(method)
]
FIT = "{method}/{dataset}/{task}/seed{seed}"


wildcard_constraints:
    dataset="[^/]+",
    part="[^/]+",
    method="[^/]+",
    task="[^/]+",
    seed="[0-9]+",


def task_of(wildcards):
    return TASKS[wildcards.dataset, wildcards.task]


def feature_folders(references):
    """The cached features of some parts."""
    return [
        CACHE / "features" / BACKBONE / DATASET_FOLDER[reference.dataset] / reference.part
        for reference in references
    ]


def of_all_fits(pattern):
    """A path pattern filled in for every fit of this run."""
    return [
        str(pattern).format(method=method, dataset=dataset, task=task, seed=seed)
        for method, dataset, task, seed in FITS
    ]


if CONFIG.train_backbone is not None:
    TARGETS = [RUN / "forceuq-small.safetensors", RUN / "forceuq-small.json"]
else:
    TARGETS = [
        RUN / "metrics.parquet",
        RUN / "tables/table2.csv",
        RUN / "figures/recalibration/recalibration.png",
        RUN / "figures/shift/shift.png",
    ]
    if CONFIG.figures.surface is not None:
        TARGETS += [
            RUN / f"figures/surface/{dataset}/{task}/surface.png" for dataset, task in TASKS
        ]
