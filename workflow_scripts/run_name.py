"""Which run a command line of Snakemake is: its results folder and its name."""

import sys
from pathlib import Path
from typing import Any

from snakemake.cli import parse_args, parse_config
from snakemake.common.configfile import load_configfile
from snakemake.settings.types import ConfigSettings

DEFAULT = Path("config/demo.yaml")


def read(file: Path) -> dict[str, Any]:
    """Return what a configuration file holds.

    Raises:
        SystemExit: it is missing, empty or not valid, in a line that names it.
    """
    try:
        return dict(load_configfile(file))
    except Exception as error:  # of whichever parser; the one that came before says where in the file
        why = " ".join(str(error.__context__ or error).split())
        sys.exit(f"{file} is not a configuration that can be read; mend it, or name another: {why}")


def named(arguments: list[str]) -> tuple[Path, str]:
    """Return the results folder and the run's name, as Snakemake and the Snakefile will read them.

    Raises:
        SystemExit: a configuration file cannot be read.
    """
    _, args = parse_args(arguments)
    files = args.configfile or []
    for file in files:
        read(file)
    config = ConfigSettings(config=parse_config(args.config), configfiles=files).overwrite_config
    if "run" not in config:
        config = {**read(DEFAULT), **config}
    return Path(config.get("results", "results")), str(config["run"])
