"""forceuq: from raw structures to calibrated uncertainties of forces. See README.md."""

import gc
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

from forceuq.configuration import load_configuration, refuse_repeated_keys
from forceuq.errors import ForceUQError
from forceuq.fingerprint import code_fingerprint
from forceuq.provenance.times import present_records, renew_times, restore_times

min_version("9.24")

# Thousands of jobs are millions of objects that stay, and going through them again and again for garbage is a quarter
# of the time that Snakemake takes to find out what is to do.
if workflow.is_main_process:
    gc.freeze()
    gc.set_threshold(200_000, 50, 50)

# Not a plain `configfile:` statement: its keys would be mixed into those of a --configfile given instead.
if "run" not in config:

    configfile: "config/demo.yaml"


try:
    # Snakemake's reader has dropped all but the last of a key by now.
    if workflow.is_main_process:
        refuse_repeated_keys(map(Path, workflow.configfiles))
    CONFIG = load_configuration(config)
except ForceUQError as error:
    raise WorkflowError(str(error)) from None


# For `--sdm apptainer`; made from envs/forceuq.def.
container: "envs/forceuq.sif"


include: "rules/layout.smk"
include: "rules/targets.smk"


# A directory that was touched or copied is no changed one, and a changed file may look old; Snakemake compares the
# content of newer files only.
if workflow.is_main_process:
    RECORDS = present_records(RESULTS, CONFIG.run)
    restore_times(RESULTS, RECORDS)
    renew_times(RESULTS, RECORDS)


include: "rules/cluster.smk"
include: "rules/resources.smk"
include: "rules/data.smk"
include: "rules/backbone.smk"
include: "rules/features.smk"
include: "rules/statistics_inputs.smk"
include: "rules/statistics.smk"
include: "rules/fit_inputs.smk"
include: "rules/fit.smk"
include: "rules/evaluate.smk"
include: "rules/cost_inputs.smk"
include: "rules/tables.smk"
include: "rules/figure_inputs.smk"
include: "rules/figures.smk"
include: "rules/audit.smk"
include: "rules/failures.smk"


localrules:
    all,
    caches,


rule all:
    default_target: True
    input:
        TARGETS,
        rules.ledger.output,


rule caches:
    input:
        CACHES,
