"""Why jobs would run, by cause: each cause with the jobs that it makes necessary, directly or through others."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from forceuq.differences import ABSENT, Change
from forceuq.fingerprint import CodeParts, parts_of
from rerun_reasons.changes import is_digest
from rerun_reasons.plan import PlannedJob

# Rule -> what one of its jobs makes, in the order of the workflow; others are figures, tables or named by their rule.
NOUNS = {
    "download": "download",
    "download_weights": "download",
    "generate": "generated data set",
    "read_structures": "data set",
    "split": "splitting",
    "export_head": "force head",
    "features": "feature cache",
    "fit": "fit",
    "predict": "prediction",
    "combine": "ensemble",
    "calibrate": "calibration",
    "metrics": "measurement",
    "merge_metrics": "merging",
    "compare": "comparison",
    "figure": "figure",
    "table": "table",
    "ledger": "ledger",
}
LONGEST = 60  # characters of a value that are shown


def summary(jobs: Sequence[PlannedJob], store: Path) -> list[str]:
    """Return a line for each cause, the cause of most jobs first.

    Args:
        jobs: the plan; a job follows the jobs that it waits for.
        store: the folder that tells what digests of code are made of (``forceuq.fingerprint``).
    """
    if not jobs:
        return ["Nothing to do: every result is there and up to date."]
    if all(job.new for job in jobs):
        return [f"nothing of this is there yet: {counted(jobs)}"]
    causes: list[dict[str, None]] = []  # ordered sets
    for_new: list[bool] = []
    for job in jobs:
        waits_for_new = any(for_new[n] for n in job.after)
        for_new.append(job.new or waits_for_new)
        inherited = [cause for n in job.after for cause in causes[n]]
        causes.append(dict.fromkeys([*inherited, *_causes(job, jobs, waits_for_new, store)]))
    groups: dict[str, list[PlannedJob]] = defaultdict(list)
    for job, names in zip(jobs, causes, strict=True):
        for name in names or {f"something about {job.rule} that Snakemake does not tell"}:
            groups[name].append(job)
    lines = [f"{cause}: {counted(members)}" for cause, members in sorted(groups.items(), key=lambda g: -len(g[1]))]
    return lines if len(lines) == 1 else [*lines, f"together: {counted(jobs)}"]


def counted(jobs: Sequence[PlannedJob]) -> str:
    """Return "3 fits, 18 predictions, 2 tables": in the order of the workflow."""
    counts = Counter(_noun(job.rule) for job in jobs)
    order = list(dict.fromkeys([*NOUNS.values(), *counts]))
    return ", ".join(f"{n} {noun}{'s' if n > 1 else ''}" for noun in order if (n := counts[noun]))


def _noun(rule: str) -> str:
    if rule in NOUNS:
        return NOUNS[rule]
    if rule.endswith("_figure"):
        return "figure"
    return "table" if rule in ("costs", "sources") or rule.startswith("table") else f"{rule} job"


def _causes(job: PlannedJob, jobs: Sequence[PlannedJob], waits_for_new: bool, store: Path) -> Iterator[str]:
    """Yield what is the matter with a job itself."""
    if job.forced:
        yield f"{job.rule} was asked for (forced)"
    if job.new:
        yield from _new(job, jobs)
        return
    if job.gone:
        yield f"results of {_subject(job)} are gone"
    if job.unfinished:
        yield f"{_subject(job)} was not finished"
    if job.environment:
        yield "the conda environment changed"
    for file in job.changed_files:
        yield f"the content of {file} changed"
    for change in job.changes:
        if is_digest(change.old) and is_digest(change.new):
            yield from _code(change, job.rule, store)
        elif not (waits_for_new and change.kind == "gained"):  # said by what is new
            yield _told(change, job)
    if not job.changes:
        yield from (f"{job.rule} takes {file} now" for file in job.gained_inputs)
        yield from (f"{job.rule} no longer takes {file}" for file in job.lost_inputs)


def _new(job: PlannedJob, jobs: Sequence[PlannedJob]) -> Iterator[str]:
    """Yield what a job without any earlier trace is for, unless that is said by the jobs that it waits for."""
    if any(jobs[n].new for n in job.after):
        return
    seed = f", seed {job.wildcards['seed']}," if "seed" in job.wildcards else ""
    yield f"{_subject(job)}{seed} is not there yet"


def _subject(job: PlannedJob) -> str:
    return next((job.wildcards[name] for name in ("method", "dataset") if name in job.wildcards), job.rule)


def _told(change: Change, job: PlannedJob) -> str:
    path = change.path.removeprefix("options.").removeprefix("execution.")
    what = f"{path} of {job.wildcards.get('method', job.rule)}"
    if change.kind == "gained":
        return f"{what}: {_shown(change.new)} is new"
    if change.kind == "lost":
        return f"{what}: {_shown(change.old)} is gone"
    return f"{what} changed {_shown(change.old)} -> {_shown(change.new)}"


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _code(change: Change, rule: str, store: Path) -> Iterator[str]:
    old, new = parts_of(str(change.old), store), parts_of(str(change.new), store)
    if old is None or new is None:
        yield f"the code of {rule} changed (what it was made of is not known)"
        return
    yield from code_changes(old, new)


def code_changes(old: CodeParts, new: CodeParts) -> Iterator[str]:
    """Yield what differs between the code of two digests: files, packages, Python."""
    for file, before, after in _differences(old["files"], new["files"]):
        verb = "is reached now" if before is ABSENT else "is no longer reached" if after is ABSENT else "changed"
        yield f"{file} {verb}"
    for package, before, after in _differences(old["packages"], new["packages"]):
        if before is ABSENT or after is ABSENT:
            yield f"{package} is {'no longer ' if after is ABSENT else ''}used{' now' if before is ABSENT else ''}"
        else:
            yield f"{package} {before} -> {after}"
    if old["python"] != new["python"]:
        yield f"Python {old['python']} -> {new['python']}"


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[tuple[str, object, object]]:
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name, ABSENT), new.get(name, ABSENT)
        if before != after:
            yield name, before, after
