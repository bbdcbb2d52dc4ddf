"""What each fit, prediction and combination is given."""

from forceuq.methods import needs_structures


def code_of_method(script, wildcards):
    kind = CONFIG.methods[wildcards.method].kind
    modules = [f"forceuq.methods.{kind}"]
    if needs_structures(kind):
        modules.append(f"forceuq.backbones.{CONFIG.backbone.kind}")
    return code(script, *modules)


def options_of_fit(wildcards):
    """The options that decide what is fitted: not how many devices share the work."""
    options = CONFIG.methods[wildcards.method].options
    return options.model_dump(mode="json", exclude={"devices"})


def devices_of(wildcards):
    """How many processes train together; a resource, so that another number does not fit again."""
    return getattr(CONFIG.methods[wildcards.method].options, "devices", 1)


def start_of(wildcards):
    """The fit that this one starts from, if its method names one."""
    start = CONFIG.methods[wildcards.method].starts_from
    if start is None:
        return []
    return [
        RUN / "fits" / FIT.format(**{**dict(wildcards.items()), "method": start}),
    ]


def splits_of(wildcards):
    """The parts of every split that is predicted, by the split's name."""
    task = task_of(wildcards)
    return {"validation": task.validation, **task.evaluate}


def splits_to_predict(wildcards):
    """Feature folders by split; the prefix keeps split names apart from Snakemake's own attributes."""
    return {
        f"split_{name}": feature_folders(parts)
        for name, parts in splits_of(wildcards).items()
    }


def files_of_datasets(wildcards, references):
    """The structures and splits files that some parts lie in, and the weights: for methods that need them."""
    if not needs_structures(CONFIG.methods[wildcards.method].kind):
        return {}
    folders = {DATASET_FOLDER[reference.dataset]: None for reference in references}
    return {
        "structures": [
            CACHE / "datasets" / name / "structures.parquet" for name in folders
        ],
        "splits": [CACHE / "datasets" / name / "splits.parquet" for name in folders],
        "weights": rules.download_weights.output.weights,
    }


def part_places(wildcards, references):
    """Which of those files each part lies in, and its name there."""
    if not needs_structures(CONFIG.methods[wildcards.method].kind):
        return []
    return [
        [
            str(CACHE / "datasets" / DATASET_FOLDER[reference.dataset] / file)
            for file in ("structures.parquet", "splits.parquet")
        ]
        + [reference.part]
        for reference in references
    ]


def backbone_of(wildcards):
    """Kind and options of the backbone, for methods that run it."""
    if not needs_structures(CONFIG.methods[wildcards.method].kind):
        return {}
    return {
        "kind": CONFIG.backbone.kind,
        "options": CONFIG.backbone.options.model_dump(mode="json"),
    }


def predictions_of_members(wildcards):
    """The predictions that a combination is made of."""
    combination = COMBINED[wildcards.method]
    fixed = {"method": combination.method, "dataset": wildcards.dataset}
    return [
        RUN / "predictions" / FIT.format(task=wildcards.task, seed=seed, **fixed)
        for seed in CONFIG.members_of(wildcards.method, wildcards.dataset)[
            int(wildcards.seed)
        ]
    ]
