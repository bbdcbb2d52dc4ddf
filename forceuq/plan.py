"""What a benchmark will cost, known before it is run: from its sizes and from throughputs that were measured.

Nothing is assumed of a device: where no throughput is recorded, an amount is not known, and so is a sum with it.
Sizes are those of the configuration (``expected``); of MPtrj's strata, whose shares are not known before the data
is there, each is counted as an equal share of its materials, and training as all frames of its materials, so that
the plan is an upper bound there. Training counts ``max_epochs``, at most what its patience left it in the paper;
combining members is counted at the rate of evaluating them. What a job takes whatever its size, seconds of starting or
of the evidence's maximum, is not counted.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from forceuq.cluster.kinds import effort_of_method, share_of_part
from forceuq.cluster.requests import EPOCHS_LARGE, EPOCHS_SMALL, LARGE_ATOMS
from forceuq.data.sources.mptrj import STRATA
from forceuq.methods import head_before_fit, needs_structures
from forceuq.throughput import Throughput

if TYPE_CHECKING:
    from forceuq.configuration.models import Configuration, MethodConfig
    from forceuq.data.splits import PartRef

# Bytes: of a structure's row, of an atom's (number, position, force), of an atom's features beside the features, of
# a prediction's. All as stored, before compression.
_STRUCTURE, _ATOM, _FEATURES, _PREDICTION = 200, 52, 62, 170
# Throughputs of work in one thread: of a record's cores it takes one.
_ONE_THREAD = ("read", "metrics")
# What every benchmark has once: the backbone's weights, its head, the merged metrics, tables 1 and 2, those of the
# costs and the sources, the figures of recalibration and of the shift, and the ledger.
_ONCE = 10


@dataclass(frozen=True)
class Work:
    """Jobs of one stage that do the same.

    Args:
        stage: of the workflow.
        name: data set or method.
        dataset: the data set that it belongs to.
        jobs: how many.
        atoms: that they work on, all together, counted again for each epoch and each draw; 0: their cost is negligible,
            as of downloads, whose time is the network's; None: their time does not grow with atoms alone.
        device: cpu or cuda.
        rate: name of the throughput (``Throughput.rate``).
        disk: bytes that are left; None: not known.
    """

    stage: str
    name: str
    dataset: str
    jobs: int
    atoms: float | None
    device: str
    rate: str
    disk: float | None = 0.0


@dataclass(frozen=True)
class Cost:
    """Hours of a core and of a GPU; None: not known."""

    core_hours: float | None = 0.0
    gpu_hours: float | None = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(_sum([self.core_hours, other.core_hours]), _sum([self.gpu_hours, other.gpu_hours]))


def work_of(configuration: "Configuration", width: int | None) -> list[Work]:
    """Return the work of a benchmark, stage by stage.

    Args:
        configuration: the benchmark's.
        width: features of an atom; None: not known, nor is what they take on disk.
    """
    return [
        *_data(configuration),
        *_features(configuration, width),
        *_summaries(configuration),
        *_fits(configuration),
        *_predictions(configuration),
        *_comparisons(configuration),
        _rest(configuration),
    ]


def cost_of(work: Work, records: Mapping[str, Throughput]) -> Cost:
    """Return what some work costs on recorded devices.

    Args:
        work: the work.
        records: throughputs by device, cpu and cuda.
    """
    record = records.get(work.device)
    rate = None if record is None else record.rate(work.rate)
    hours: float | None = None
    if work.atoms == 0:
        hours = 0.0
    elif record is not None and rate and work.atoms is not None:
        cores = record.cores if work.device == "cpu" and work.rate not in _ONE_THREAD else 1
        hours = work.atoms / rate * cores / 3600
    return Cost(gpu_hours=hours) if work.device == "cuda" else Cost(core_hours=hours)


def instance_of(configuration: "Configuration", method: str, dataset: str) -> list[Work]:
    """Return the work of one instance of a method: caching its data and one fit, with those that it starts from."""
    chain = [method]
    while (start := configuration.methods[chain[-1]].starts_from) is not None:
        chain.append(start)
    task = next(task for (name, _), task in configuration.tasks.items() if name == dataset)
    atoms = _atoms(configuration, task.train + task.validation)
    cached = Work("cache", dataset, dataset, 1, atoms, _cache_device(configuration), "cache")
    own = [] if needs_structures(configuration.methods[method].kind) else [cached]
    return own + [_fit(configuration, name, dataset, atoms, 1) for name in chain]


def table(work: Sequence[Work], records: Mapping[str, Throughput]) -> str:
    """Return the plan as a Markdown table, with a sum."""
    lines = [
        "| stage | of | data set | jobs | GPU-hours | core-hours | disk (GB) |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    costs = [cost_of(item, records) for item in work]
    for item, cost in zip(work, costs, strict=True):
        disk = None if item.disk is None else item.disk / 1e9
        lines.append(
            f"| {item.stage} | {item.name} | {item.dataset} | {item.jobs} | {_shown(cost.gpu_hours)} |"
            f" {_shown(cost.core_hours) if item.atoms != 0 else 'negligible'} | {_shown(disk)} |"
        )
    jobs = sum(item.jobs for item in work)
    known = [_known([getattr(cost, key) for cost in costs]) for key in ("gpu_hours", "core_hours")]
    stored = _known([None if item.disk is None else item.disk / 1e9 for item in work])
    lines.append(f"| **sum** |  |  | {jobs} | {known[0]} | {known[1]} | {stored} |")
    return "\n".join(lines)


def report(configuration: "Configuration", records: Mapping[str, Throughput], paper_hours: float) -> str:
    """Return the whole plan as text.

    Args:
        configuration: the benchmark's.
        records: throughputs by device, cpu and cuda, of its backbone.
        paper_hours: A100-hours of the BLL in the paper's Table 1.
    """
    measured = [
        f"Throughputs of {record.hardware} ({record.device}, {record.cores} threads), measured {record.measured}"
        + (f" at a load of {record.load}" if record.load is not None else "")
        for record in records.values()
    ]
    width = next((record.width for record in records.values()), None)
    work = work_of(configuration, width)
    lines = [
        *measured,
        "",
        table(work, records),
        "",
        "Table 1, BLL on MPtrj, one instance with its share of the cache:",
    ]
    lines += [f"  {label}: {cost}" for label, cost in bll_rows(configuration, records, paper_hours)]
    if missing := sorted({item.device for item in work} - set(records)):
        lines += [
            "",
            f"Not known: what runs on {' and '.join(missing)}, of which there is no record. On such a machine run"
            " benchmarks/throughput.py, and give the record's name as DEVICE.",
        ]
    return "\n".join(lines)


def bll_rows(
    configuration: "Configuration", records: Mapping[str, Throughput], paper_hours: float
) -> Iterator[tuple[str, str]]:
    """Yield (label, cost) of Table 1's BLL row: the paper's, and that of each BLL that is fitted to MPtrj."""
    yield "the paper", f"{paper_hours} A100-hours"
    for name, method in configuration.methods.items():
        for dataset, entry in configuration.datasets.items():
            if method.kind != "bll" or entry.kind != "mptrj" or not configuration.seeds_of(name, dataset):
                continue
            cost = Cost()
            for work in instance_of(configuration, name, dataset):
                cost += cost_of(work, records)
            yield f"{method.label} ({dataset})", _both(cost, records)


def _data(configuration: "Configuration") -> Iterator[Work]:
    for name, dataset in configuration.datasets.items():
        size = dataset.size
        download = dataset.download
        raw = None if download is None or download.size is None else float(download.size)
        if download is None:
            yield Work("generate", name, name, 1, float(size.atoms), "cpu", f"generate {dataset.kind}", None)
        else:
            yield Work("fetch", name, name, 1, 0.0, "cpu", "fetch", raw)
        stored = size.structures * _STRUCTURE + size.atoms * _ATOM
        rate = "read" if dataset.kind == "mptrj" else f"read {dataset.kind}"
        yield Work("read and split", name, name, 2, float(size.atoms), "cpu", rate, float(stored))


def _features(configuration: "Configuration", width: int | None) -> Iterator[Work]:
    used: dict[str, dict[str, None]] = {}
    for task in configuration.tasks.values():
        for part in [*task.train, *task.validation, *(p for parts in task.evaluate.values() for p in parts)]:
            used.setdefault(part.dataset, {})[part.part] = None
    cells = 2 if configuration.features.precision == "float16" else 4
    for name, parts in used.items():
        atoms = sum(_atoms_of_part(configuration, name, part) for part in parts)
        jobs = sum(configuration.features.shards_of(name, part) for part in parts)
        disk = None if width is None else atoms * (_FEATURES + cells * width)
        yield Work("cache", name, name, jobs, atoms, _cache_device(configuration), "cache", disk)


def _is_summarised(configuration: "Configuration", method: "MethodConfig") -> bool:
    start = None if method.starts_from is None else Path(method.starts_from)
    given = head_before_fit(method.kind, method.options, Path("head"), start)
    return configuration.features.statistics_by_shard and given is not None


def _summaries(configuration: "Configuration") -> Iterator[Work]:
    """Yield the statistics of shards; fits with the same head share them."""
    found: dict[tuple[str, str | None, str], dict[tuple[object, str], None]] = {}
    for name, method in configuration.methods.items():
        if not _is_summarised(configuration, method):
            continue
        for (dataset, task_name), task in configuration.tasks.items():
            for seed in configuration.seeds_of(name, dataset):
                head = None if method.starts_from is None else (dataset, task_name, seed)
                for part in task.train:
                    key = method.kind, method.starts_from, part.dataset
                    found.setdefault(key, {})[head, part.part] = None
    for (kind, start, dataset), parts in found.items():
        jobs = sum(configuration.features.shards_of(dataset, part) for _, part in parts)
        atoms = sum(_atoms_of_part(configuration, dataset, part) for _, part in parts)
        yield Work("summarise", start or "the backbone's head", dataset, jobs, atoms, "cpu", f"single fit {kind}")


def _fits(configuration: "Configuration") -> Iterator[Work]:
    for name, method in configuration.methods.items():
        if method.combines is not None:
            continue
        for dataset in configuration.datasets:
            tasks = [task for (owner, _), task in configuration.tasks.items() if owner == dataset]
            seeds = configuration.seeds_of(name, dataset)
            if tasks and seeds:
                atoms = sum(_atoms(configuration, task.train + task.validation) for task in tasks)
                work = _fit(configuration, name, dataset, atoms, len(seeds), len(tasks))
                # The jobs of the shards go through the atoms instead.
                yield replace(work, atoms=0.0) if _is_summarised(configuration, method) else work


def _fit(configuration: "Configuration", name: str, dataset: str, atoms: float, seeds: int, tasks: int = 1) -> Work:
    method = configuration.methods[name]
    effort = effort_of_method(method.kind, method.options, method.starts_from is not None)
    epochs = min(effort.epochs, EPOCHS_SMALL if atoms / tasks < LARGE_ATOMS else EPOCHS_LARGE)
    if method.kind == "gp":  # neither epochs nor linear in atoms
        return Work("fit", name, dataset, seeds * tasks, None, effort.fits_on, "training gp")
    rate = f"training {method.kind}" if epochs else f"single fit {method.kind}"
    if epochs and method.kind == "bll" and getattr(method.options, "projection", None) == "mse":
        rate += " mse"  # a third of the time of the evidence
    return Work("fit", name, dataset, seeds * tasks, seeds * atoms * (epochs or 1), effort.fits_on, rate)


def _predictions(configuration: "Configuration") -> Iterator[Work]:
    for name, method in configuration.methods.items():
        for dataset in configuration.datasets:
            tasks = [task for (owner, _), task in configuration.tasks.items() if owner == dataset]
            seeds = configuration.seeds_of(name, dataset)
            if not tasks or not seeds or not (method.evaluate or method.combines is None):
                continue
            atoms = sum(
                _atoms(configuration, parts) for task in tasks for parts in [task.validation, *task.evaluate.values()]
            )
            jobs, disk = len(seeds) * len(tasks), len(seeds) * atoms * _PREDICTION
            if method.combines is None:
                device = effort_of_method(method.kind, method.options, method.starts_from is not None).predicts_on
                yield Work(
                    "predict", name, dataset, jobs, len(seeds) * atoms, device, f"prediction {method.kind}", disk
                )
            else:
                members = sum(map(len, configuration.members_of(name, dataset)))
                yield Work("combine", name, dataset, jobs, members * atoms, "cpu", "metrics", disk)
            if method.evaluate:  # a job that fits all calibrations, and one that measures under all of them
                done = len(configuration.calibrations) * len(seeds) * atoms
                yield Work("calibrate, measure", name, dataset, 2 * jobs, done, "cpu", "metrics")


def _comparisons(configuration: "Configuration") -> Iterator[Work]:
    shown = [key for key, method in configuration.methods.items() if method.evaluate and method.in_tables]
    for name in configuration.datasets:
        fits = sum(len(configuration.seeds_of(method, name)) for method in shown)
        tasks = [task for (owner, _), task in configuration.tasks.items() if owner == name]
        atoms = sum(_atoms(configuration, parts) for task in tasks for parts in task.evaluate.values())
        if tasks:
            drawn = fits * atoms * configuration.bootstrap_draws
            yield Work("compare", name, name, 1, drawn, "cpu", "bootstrap")


def _rest(configuration: "Configuration") -> Work:
    strata = sum(hasattr(dataset.options, "strata") for dataset in configuration.datasets.values())
    surfaces = 0 if configuration.figures.surface is None else len(configuration.tasks)
    sizes = sum(
        bool(configuration.seeds_of(name, dataset))
        for name, method in configuration.methods.items()
        for dataset in {dataset for dataset, _ in configuration.tasks}
        if method.combines is not None and method.combines.sizes
    )
    what = "weights, head, merging, strata, tables, figures, ledger"
    return Work("rest", what, "all", _ONCE + strata + surfaces + sizes, 0.0, "cpu", "rest")


def _cache_device(configuration: "Configuration") -> str:
    return "cuda" if configuration.features.device == "cuda" else "cpu"


def _atoms(configuration: "Configuration", parts: Iterable["PartRef"]) -> float:
    return sum(_atoms_of_part(configuration, part.dataset, part.part) for part in parts)


def _atoms_of_part(configuration: "Configuration", name: str, part: str) -> float:
    dataset = configuration.datasets[name]
    share = share_of_part(dataset.kind, part, dataset.options)
    if dataset.kind == "mptrj" and part in STRATA:
        share /= len(STRATA)
    return dataset.size.atoms * share


def _sum(values: Sequence[float | None]) -> float | None:
    return None if any(value is None for value in values) else sum(value or 0.0 for value in values)


def _known(values: Sequence[float | None]) -> str:
    known = sum(value for value in values if value is not None)
    missing = sum(value is None for value in values)
    return _shown(known) + (f" + {missing} not known" if missing else "")


def _shown(value: float | None) -> str:
    if value is None:
        return "not known"
    return f"{value:.3g}" if value else "0"


def _both(cost: Cost, records: Mapping[str, Throughput]) -> str:
    if cost.core_hours is None or cost.gpu_hours is None:
        return "not known"
    shown = [(cost.gpu_hours, "GPU-hours", "cuda"), (cost.core_hours, "core-hours", "cpu")]
    return " + ".join(f"{hours:.3g} {unit} ({records[key].hardware})" for hours, unit, key in shown if hours) or "0"
