"""The jobs that Snakemake would run now, each with what it knows of why."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snakemake.api import SnakemakeApi
from snakemake.cli import parse_args, parse_config
from snakemake.settings.types import (
    ConfigSettings,
    DAGSettings,
    OutputSettings,
    Quietness,
    ResourceSettings,
)

from forceuq.differences import Change
from rerun_reasons.changes import parameter_changes


@dataclass
class PlannedJob:
    """A job that would run.

    ``new`` says that no trace of an earlier run of it is left; ``gone`` that one made files which are not there.
    """

    rule: str
    wildcards: dict[str, str]
    new: bool = False
    gone: bool = False
    unfinished: bool = False
    forced: bool = False
    environment: bool = False
    changes: list[Change] = field(default_factory=list)
    changed_files: list[str] = field(default_factory=list)
    gained_inputs: list[str] = field(default_factory=list)
    lost_inputs: list[str] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    """Positions in the plan of the planned jobs whose outputs it takes."""


def plan(arguments: list[str]) -> tuple[list[PlannedJob], Path]:
    """Return the jobs that ``snakemake <arguments>`` would run, in order and without the target rule.

    Beside them the folder that tells what digests of code are made of (``forceuq.fingerprint.parts_of``).
    Raises what ``planned`` raises.
    """
    with planned(arguments) as workflow:
        return _jobs(workflow), workflow.globals["CODE_STORE"]


@contextlib.contextmanager
def planned(arguments: list[str]) -> Iterator[Any]:
    """Yield Snakemake's workflow with what ``snakemake <arguments>`` would do planned, not done.

    The arguments and the profile are read as Snakemake does. Raises what Snakemake raises for a workflow or
    configuration that it cannot plan.
    """
    _, args = parse_args(["--quiet", "all", "--dry-run", *arguments])
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL}, dryrun=True)) as api:
        workflow_api = api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(config=parse_config(args.config), configfiles=args.configfile),
            snakefile=args.snakefile or Path("Snakefile"),
            workdir=args.directory,
        )
        dag_api = workflow_api.dag(
            dag_settings=DAGSettings(
                targets=args.targets,
                forcetargets=args.force,
                forceall=args.forceall,
                forcerun=args.forcerun,
                force_incomplete=args.rerun_incomplete,
                rerun_triggers=args.rerun_triggers,
                max_checksum_file_size=args.max_checksum_file_size,
            )
        )
        dag_api.execute_workflow(executor="dryrun")
        yield workflow_api._workflow  # the one thing here that Snakemake's interface does not offer


def _jobs(workflow: Any) -> list[PlannedJob]:
    dag = workflow.dag
    needed = set(dag.needrun_jobs(exclude_finished=False))
    jobs = [job for level in dag.toposorted() for job in level if job in needed and not job.rule.norun]
    position = {job: n for n, job in enumerate(jobs)}
    planned = []
    for job in jobs:
        entry = _described(job, dag.reason(job), workflow.persistence)
        entry.after = sorted(position[other] for other in dag.dependencies[job] if other in position)
        made = {str(file) for other in dag.dependencies[job] if other in position for file in other.output}
        entry.changed_files = [file for file in entry.changed_files if file not in made]
        entry.gained_inputs = [file for file in entry.gained_inputs if file not in made]
        planned.append(entry)
    return planned


def _described(job: Any, reason: Any, persistence: Any) -> PlannedJob:
    entry = PlannedJob(job.rule.name, {name: str(value) for name, value in job.wildcards_dict.items()})
    made = [(file, record) for file in job.output if (record := persistence.metadata(file)) is not None]
    records = [record for _, record in made]
    entry.forced = bool(reason.forced)
    entry.unfinished = bool(reason.incomplete_output)
    entry.environment = bool(reason.software_stack_changed)
    entry.changed_files = sorted(map(str, set(reason.updated_input) - set(reason.updated_input_run)))
    entry.new = not made and any(not Path(str(file)).exists() for file in job.output)
    # A file without a record was not there before: one more of a figure drawn for each method, say.
    entry.gone = any(not Path(str(file)).exists() for file, _ in made)
    for record in records[:1]:
        if record.params is not None:
            entry.changes = parameter_changes(record.params, _named(job))
        if record.input is not None:
            now = set(map(str, job.input))
            entry.gained_inputs = sorted(now - set(record.input))
            entry.lost_inputs = sorted(set(record.input) - now)
    return entry


def _named(job: Any) -> dict[str, Any]:
    """Return the parameters that Snakemake compares, by name."""
    compared = list(map(id, job.non_derived_params))
    return {name: value for name, value in job.params.items() if id(value) in compared}
