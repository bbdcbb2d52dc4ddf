"""What each rule's jobs will do, in numbers; the estimates themselves are in forceuq/cluster/requests.py."""

from forceuq.cluster import requests
from forceuq.cluster.kinds import effort_of_method, share_of_part, speed_of_backbone
from forceuq.data.sources import max_threads
from forceuq.methods import needs_structures


def atoms_of(references):
    """Atoms of some parts, about."""
    return sum(atoms_of_part(part.dataset, part.part) for part in references)


def atoms_of_part(name, part):
    dataset = CONFIG.datasets[name]
    share = share_of_part(dataset.kind, part, dataset.options)
    return int(dataset.size.atoms * share)


def name_of(folder):
    """The data set whose folder in the cache this is."""
    return next(name for name, there in DATASET_FOLDER.items() if there == folder)


def speed():
    return speed_of_backbone(CONFIG.backbone.kind, CONFIG.backbone.options)


def speed_if_run(method):
    """The backbone's speed, for methods that run it."""
    return speed() if needs_structures(CONFIG.methods[method].kind) else None


def effort_of(method):
    entry = CONFIG.methods[method]
    return effort_of_method(entry.kind, entry.options, entry.starts_from is not None)


def size_of(wildcards):
    return DATASETS[wildcards.dataset].size


def to_generate(wildcards):
    return requests.generating(size_of(wildcards).atoms)


def to_read(wildcards):
    processes = max_threads(DATASETS[wildcards.dataset].kind)
    return requests.reading(size_of(wildcards).atoms, processes)


def to_split(wildcards):
    size = size_of(wildcards)
    return requests.splitting(size.structures, size.atoms)


def to_cache(wildcards):
    atoms = atoms_of_shard(wildcards)
    device = "cuda" if CONFIG.features.device == "cuda" else "cpu"
    return requests.caching(atoms, speed(), device, CONFIG.features.workers)


def to_summarise(wildcards):
    return requests.fitting(atoms_of_shard(wildcards), 0, "cpu")


def atoms_of_shard(wildcards):
    """Atoms of one shard of a part, about."""
    atoms = atoms_of_part(name_of(wildcards.dataset), wildcards.part)
    return -(-atoms // int(wildcards.shards))


def to_fit(wildcards):
    task, effort = task_of(wildcards), effort_of(wildcards.method)
    return requests.fitting(
        atoms_of(task.train + task.validation),
        effort.epochs,
        effort.fits_on,
        speed_if_run(wildcards.method),
        memory_gb=effort.memory_gb,
        devices=effort.devices,
        features_gib=effort.features_gib,
    )


def to_predict(wildcards):
    effort = effort_of(wildcards.method)
    return requests.predicting(
        predicted_atoms(wildcards),
        effort.predicts_on,
        speed_if_run(wildcards.method),
        effort.passes,
        effort.memory_gb,
    )


def to_combine(wildcards):
    members = CONFIG.members_of(wildcards.method, wildcards.dataset)[
        int(wildcards.seed)
    ]
    return requests.evaluating(len(members) * predicted_atoms(wildcards), 0)


def to_calibrate(wildcards):
    atoms = atoms_of(task_of(wildcards).validation)
    return requests.evaluating(2 * atoms, atoms)


def to_measure(wildcards):
    return requests.evaluating(len(CONFIG.calibrations) * predicted_atoms(wildcards), 0)


def predicted_atoms(wildcards):
    return sum(atoms_of(parts) for parts in splits_of(wildcards).values())


def to_compare(wildcards):
    tasks = [task for (name, _), task in TASKS.items() if name == wildcards.dataset]
    fits = len(of_dataset(wildcards.dataset, FIT)) // len(tasks)
    atoms = sum(atoms_of(parts) for task in tasks for parts in task.evaluate.values())
    return requests.comparing(fits * atoms, CONFIG.bootstrap_draws)


def to_draw_surface(wildcards):
    atoms = atoms_of(task_of(wildcards).validation)
    return requests.drawing_surfaces(
        atoms * len(first_fits(wildcards)), atoms, CONFIG.figures.surface.points**2
    )
