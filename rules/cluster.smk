"""The cluster: what it grants, jobs of earlier runs there, and how a rule asks it for what its job needs."""

import shutil

from forceuq.cluster.attempts import (
    ends,
    nodes_to_avoid,
    partitions,
    past_jobs,
    refuse_cancelled,
)
from forceuq.cluster.sessions import cancel_left_over, session_name
from forceuq.cluster.site import limits_of, load_site, partitions_of

SLURM = Path(workflow.basedir, "slurm")
try:
    SITE = load_site(SLURM / "site.yaml")
    PARTITIONS = (
        partitions_of(SITE, SLURM / "partitions.yaml") if SLURM.is_dir() else {}
    )
    LIMITS = [limits_of(PARTITIONS, gpus) for gpus in (0, 1)]
except ForceUQError as error:
    raise WorkflowError(str(error)) from None


# The conda environment of jobs that may run on a GPU. One for all methods: CUDA's PyTorch runs on the CPU too.
ON_CUDA = {CONFIG.features.device} | {
    getattr(method.options, "device", None) for method in CONFIG.methods.values()
}
GPU_ENVIRONMENT = f"../envs/conda-{'cuda' if 'cuda' in ON_CUDA else 'cpu'}.yaml"


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
    # Under its limit of starts a second (100 unless told otherwise) each pass of the scheduler asks for one more later
    # on, and with every job that ends there are more of them: after some hundred jobs they take a core and the run
    # waits for them. Nothing here starts a hundred jobs a second; sbatch is called by two threads.
    if hasattr(workflow.scheduler, "job_rate_limiter"):
        workflow.scheduler.job_rate_limiter = None
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


def has_past(attempt):
    """Whether a job was tried before, by this process on a cluster."""
    return attempt > 1 and workflow.is_main_process and shutil.which("squeue")


def earlier_ends(wildcards, attempt):
    """How a job's earlier attempts ended, as far as the scheduler says."""
    if not has_past(attempt):
        return []
    try:
        return ends(past_jobs(session_name()), wildcards, attempt - 1)
    except ForceUQError as error:
        logger.warning(f"{error}: memory and time both grow")
        return []


def elsewhere(attempt):
    """Options of sbatch that keep a job which is tried again off nodes that fail every job."""
    if not has_past(attempt):
        return ""
    try:
        jobs = past_jobs(session_name())
        refuse_cancelled(jobs)
        avoided = nodes_to_avoid(jobs, partitions())
    except ForceUQError as error:
        raise WorkflowError(str(error)) from None
    return f"--exclude={','.join(avoided)}" if avoided else ""


def asked(estimate, placed=True):
    """The `resources:` of a rule, from a function of the wildcards that says what its job will do.

    Of rules in one group only the first is `placed`: strings must be the same for all jobs of a group.
    """

    def of_attempt(wildcards, attempt):
        request = estimate(wildcards)
        request = request.retried(attempt, earlier_ends(wildcards, attempt))
        return request.within(LIMITS[min(request.gpus, 1)])

    place = {"slurm_extra": lambda wildcards, attempt: elsewhere(attempt)}
    return {
        **(place if placed else {}),
        "mem_mb": lambda wildcards, attempt: of_attempt(wildcards, attempt).memory_mb,
        "runtime": lambda wildcards, attempt: of_attempt(wildcards, attempt).minutes,
        # Beside `threads`, which Snakemake cuts down to the cores of the machine that it runs on: a login node's.
        "cpus_per_task": lambda wildcards: of_cores(estimate(wildcards)),
        "gpu": lambda wildcards: estimate(wildcards).gpus,
        "gpu_model": lambda wildcards: (
            SITE.gpu_model if SITE.gpu_model and estimate(wildcards).gpus else ""
        ),
    }


def cores(estimate):
    """The `threads:` of a rule, likewise."""
    return lambda wildcards: of_cores(estimate(wildcards))


def of_cores(request):
    return request.within(LIMITS[min(request.gpus, 1)]).cores
