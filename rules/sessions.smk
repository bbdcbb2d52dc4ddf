"""What a run makes sure of on a cluster before it starts, and before it tries a job again."""

import shutil

from forceuq.cluster.attempts import (
    nodes_to_avoid,
    partitions,
    past_jobs,
    refuse_cancelled,
)
from forceuq.cluster.sessions import cancel_left_over, session_name


def refuse_unequal_arrays():
    """Every task of an array gets the first one's request: all must ask for the same."""
    asked_by = {}
    for job in workflow.dag.needrun_jobs():
        if job.rule.name in SITE.array_rules:
            request = [
                job.threads,
                *map(job.resources.get, ("mem_mb", "runtime", "gpu")),
            ]
            first = asked_by.setdefault(job.rule.name, request)
            if request != first:
                raise WorkflowError(
                    f"slurm/site.yaml: array_rules: the jobs of '{job.rule.name}' ask for different cores, memory, "
                    f"minutes and GPUs ({first}, {request}); take the rule out"
                )


# A run that was killed may have left jobs that write what this one is about to write. Jobs themselves have no hooks.
onstart:
    refuse_unequal_arrays()
    if shutil.which("squeue"):
        try:
            for job in cancel_left_over(Path.cwd()):
                logger.warning(
                    f"Cancelled job {job.identifier} of an earlier run: {job.comment}"
                )
        except ForceUQError as error:
            # Without a cluster the run needs no answer: Slurm's programs can be there and no scheduler.
            if not workflow.local_exec:
                raise WorkflowError(str(error)) from None


def elsewhere(attempt):
    """Options of sbatch that keep a job which is tried again off nodes that fail every job."""
    if attempt == 1 or not workflow.is_main_process or not shutil.which("squeue"):
        return ""
    try:
        jobs = past_jobs(session_name())
        refuse_cancelled(jobs)
        avoided = nodes_to_avoid(jobs, partitions())
    except ForceUQError as error:
        raise WorkflowError(str(error)) from None
    return f"--exclude={','.join(avoided)}" if avoided else ""
