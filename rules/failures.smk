"""What failed, once more at the end: under `keep-going` it stands hundreds of lines above."""

LAST_LINES = 1


def last_lines(file):
    """The end of a job's log, each line with an indent; what there is."""
    try:
        lines = Path(file).read_text(errors="replace").splitlines()
    except OSError as error:
        lines = [f"(no log: {error})"]
    # A progress bar overwrites itself: the last state is enough.
    written = [line.rsplit("\r", 1)[-1] for line in lines if line.strip()]
    return [f"    {line}" for line in written[-LAST_LINES:]]


onerror:
    # Of a group it is not known which of its jobs failed: those whose outputs are not there, or the ones after them.
    failed = [
        job
        for one in (
            getattr(workflow.scheduler, "failed", ())
            if workflow.is_main_process
            else ()
        )
        for job in getattr(one, "jobs", [one])
    ]
    missing = [
        job for job in failed if not all(Path(file).exists() for file in job.output)
    ]
    if missing:
        logger.error(
            f"\n{len(missing)} jobs failed, or were grouped with one that did:"
        )
    for job in sorted(missing, key=lambda job: (job.rule.name, str(job.output))):
        logger.error(f"  {job.message or job.rule.name}")
        for file in job.log:
            logger.error("\n".join([f"    {file}", *last_lines(file)]))
