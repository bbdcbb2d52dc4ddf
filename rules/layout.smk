"""Where everything lies (caches shared by identity, the folder of this run), and what each job is given."""

RESULTS = Path(CONFIG.results)
CACHE = RESULTS / "cache"
RUN = RESULTS / CONFIG.run
# What was found out about the code, and what its digests are made of.
CODE_STORE = CACHE / "code"

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
# Features stored in half precision are another cache.
FEATURE_CACHE = (
    BACKBONE
    if CONFIG.features.precision == "float32"
    else f"{BACKBONE}-{CONFIG.features.precision}"
)
FEATURES = CACHE / "features" / FEATURE_CACHE

# (data set, task name) -> task.
TASKS = CONFIG.tasks
# The data sets that something is fitted to.
TRAINED = list(dict.fromkeys(dataset for dataset, _ in TASKS))
# Data sets in strata of energy above the relaxed structure -> their boundaries.
STRATA = {
    name: dataset.options.strata
    for name, dataset in CONFIG.datasets.items()
    if hasattr(dataset.options, "strata")
}
# Methods that are fitted, those that combine fits of others, and those of either that have metrics, or rows in
# the tables too.
COMBINED = {
    name: method.combines
    for name, method in CONFIG.methods.items()
    if method.combines is not None
}
FITTED = [name for name in CONFIG.methods if name not in COMBINED]
EVALUATED = [name for name, method in CONFIG.methods.items() if method.evaluate]
TABLED = [name for name in EVALUATED if CONFIG.methods[name].in_tables]
# Ensembles whose metrics are drawn over their size.
SIZED = [name for name, combination in COMBINED.items() if combination.sizes]
FIT = "{method}/{dataset}/{task}/seed{seed}"
# A part's features are made by this many jobs, each its own folder.
SHARD = "{shard}-of-{shards}"


wildcard_constraints:
    dataset="[^/]+",
    part="[^/]+",
    method="[^/]+",
    task="[^/]+",
    seed="[0-9]+",
    shard="[0-9]+",
    shards="[0-9]+",


def task_of(wildcards):
    return TASKS[wildcards.dataset, wildcards.task]


def feature_folders(references):
    """The cached features of some parts: the folders of each part's shards, in order."""
    return [
        folder
        for reference in references
        for folder in shard_folders(reference.dataset, reference.part)
    ]


@cache
def shard_folders(dataset, part):
    """The folders of one part's shards. Kept: a large workflow asks for the same ones hundreds of times."""
    shards = CONFIG.features.shards_of(dataset, part)
    return [
        FEATURES
        / DATASET_FOLDER[dataset]
        / part
        / SHARD.format(shard=shard, shards=shards)
        for shard in range(shards)
    ]


# All that runs share, and that a run needs before it makes anything of its own.
CACHES = []
if CONFIG.backbone is not None:
    CACHES = [
        CACHE / "backbones" / BACKBONE / "head.safetensors",
        *{
            folder: None
            for task in TASKS.values()
            for parts in (task.train, task.validation, *task.evaluate.values())
            for folder in feature_folders(parts)
        },
    ]


def of_all(methods, pattern):
    """A path pattern filled in for every data set, task and seed of some methods."""
    return [
        str(pattern).format(method=method, dataset=dataset, task=task, seed=seed)
        for method in methods
        for dataset, task in TASKS
        for seed in CONFIG.seeds_of(method, dataset)
    ]


def of_dataset(dataset, pattern):
    """A path pattern filled in for every fit to one data set that is in the tables."""
    return [
        str(pattern).format(method=method, dataset=dataset, task=task, seed=seed)
        for method in TABLED
        for name, task in TASKS
        if name == dataset
        for seed in CONFIG.seeds_of(method, dataset)
    ]


def fitted_to(method):
    """The data sets that a method is fitted to."""
    return [name for name in TRAINED if CONFIG.seeds_of(method, name)]


@cache
def code(script, *modules, data=()):
    """The digest of the code that a script reaches, and of its packages: the job runs again when it changes."""
    return code_fingerprint(
        Path(workflow.basedir, "workflow_scripts", script),
        modules,
        data,
        store=CODE_STORE,
    )


def one_of(names):
    """A wildcard pattern of some names."""
    return "|".join(names) or "NONE"


def datasets_with(origin):
    """A wildcard pattern of the data sets whose raw file is downloaded, or generated."""
    return one_of(name for name, data in DATASETS.items() if origin in data.origin)


METHOD_LABELS = {name: CONFIG.methods[name].label for name in TABLED}
DATASET_LABELS = {name: CONFIG.datasets[name].label for name in TRAINED}
# Method -> the data sets that it is fitted to, of those in the tables.
FITTED_TO = {name: fitted_to(name) for name in TABLED}


def split_labels(with_dataset, joined=True):
    """(data set, split, label) of everything evaluated, in the order of the configuration.

    ``joined`` splits are whole data sets that a task is evaluated on besides its own.
    """
    names = {"id": "ID", "ood": "OOD"}
    labels = {}
    for (dataset, _), task in TASKS.items():
        for split, (first, *_) in task.evaluate.items():
            label = names.get(split, split.capitalize())
            if first.dataset != dataset:
                if not joined:
                    continue
                label = CONFIG.datasets[split].label
            labels[dataset, split] = (
                f"{DATASET_LABELS[dataset]} {label}" if with_dataset else label
            )
    return [[dataset, split, label] for (dataset, split), label in labels.items()]
