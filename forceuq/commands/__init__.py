"""The ``forceuq`` command. Each module here with a function ``command`` is a subcommand of the module's name."""

import pkgutil
import sys
from importlib import import_module

import typer

from forceuq.errors import ForceUQError

app = typer.Typer(
    help="What follows a run of the benchmark: predictions for other structures, where its numbers come from, and"
    " whether they are what they were.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _common() -> None:
    # With a callback there are subcommands even while there is only one.
    pass


for _module in pkgutil.iter_modules(__path__):
    app.command(_module.name)(import_module(f"{__name__}.{_module.name}").command)


def main() -> None:
    """Run the command; an error that forceuq raises on purpose is its message alone, and exit code 2."""
    try:
        app()
    except ForceUQError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
