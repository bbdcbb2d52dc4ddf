"""Where everything lies (caches shared by identity, the folder of this run), and what each job is given."""

from forceuq.data.sources import load_source

RESULTS = Path(CONFIG.results)
CACHE = RESULTS / "cache"
RUN = RESULTS / CONFIG.run

# Folder name in the cache -> data set. The digest in it makes runs with other options use other folders.
DATASETS = {
    f"{name}-{dataset.identity}": dataset for name, dataset in CONFIG.datasets.items()
}
DATASET_FOLDER = {
    name: f"{name}-{dataset.identity}" for name, dataset in CONFIG.datasets.items()
}
BACKBONE = (
    f"{CONFIG.backbone.name}-{CONFIG.backbone.identity}" if CONFIG.backbone else "none"
)

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
        CACHE
        / "features"
        / BACKBONE
        / DATASET_FOLDER[reference.dataset]
        / reference.part
        for reference in references
    ]


def of_all_fits(pattern):
    """A path pattern filled in for every fit of this run."""
    return [
        str(pattern).format(method=method, dataset=dataset, task=task, seed=seed)
        for method, dataset, task, seed in FITS
    ]


@cache
def code(script, *modules, data=()):
    """The digest of the library code that a script reaches: the job runs again when it changes."""
    return code_fingerprint(
        Path(workflow.basedir, "workflow_scripts", script), modules, data
    )


def datasets_with(origin):
    """A wildcard pattern of the data sets whose raw file is downloaded, or generated."""
    names = [name for name, dataset in DATASETS.items() if origin in dataset.origin]
    return "|".join(names) or "NONE"


def code_of_method(script, wildcards):
    return code(script, f"forceuq.methods.{CONFIG.methods[wildcards.method].kind}")


def start_of(wildcards):
    """The fit that this one starts from, if its method names one."""
    start = CONFIG.methods[wildcards.method].starts_from
    if start is None:
        return []
    return [
        RUN / "fits" / FIT.format(**{**dict(wildcards.items()), "method": start}),
    ]


def splits_to_predict(wildcards):
    """Feature folders by split; the prefix keeps split names apart from Snakemake's own attributes."""
    task = task_of(wildcards)
    splits = {"validation": task.validation, **task.evaluate}
    return {f"split_{name}": feature_folders(parts) for name, parts in splits.items()}


METHOD_LABELS = {name: method.label for name, method in CONFIG.methods.items()}
DATASET_LABELS = {name: dataset.label for name, dataset in CONFIG.datasets.items()}


def split_labels(with_dataset):
    """(data set, split, label) of everything evaluated, in the order of the configuration."""
    names = {"id": "ID", "ood": "OOD"}
    labels = {}
    for (dataset, _), task in TASKS.items():
        for split in task.evaluate:
            label = names.get(split, split.capitalize())
            labels[dataset, split] = (
                f"{DATASET_LABELS[dataset]} {label}" if with_dataset else label
            )
    return [[dataset, split, label] for (dataset, split), label in labels.items()]


if CONFIG.train_backbone is not None:
    TARGETS = [RUN / "forceuq-small.safetensors", RUN / "forceuq-small.json"]
else:
    TARGETS = [
        RUN / "metrics.parquet",
        RUN / "tables/table2.csv",
        RUN / "tables/costs.csv",
        RUN / "figures/recalibration/recalibration.png",
        RUN / "figures/shift/shift.png",
    ]
    if CONFIG.figures.surface is not None:
        TARGETS += [
            RUN / f"figures/surface/{dataset}/{task}/surface.png"
            for dataset, task in TASKS
        ]
