"""Errors that forceuq raises on purpose.

Each names the thing at fault (a file, a record, a configuration key) and says what to do about it, so that
a message alone, found in a cluster's log, is enough to act on.
"""

from pathlib import Path


class ForceUQError(Exception):
    """Base of every error that forceuq raises on purpose."""


class ConfigurationError(ForceUQError):
    """A configuration that cannot be run: unknown key, impossible value, contradictory choices."""


class DataError(ForceUQError):
    """An input file that is missing, damaged or not what it was said to be.

    Args:
        message: what is wrong, and what to do.
        file: the file at fault.
        record: the record inside it (a structure id, a row, an archive member), where there is one.
    """

    def __init__(self, message: str, *, file: str | Path | None = None, record: object = None) -> None:
        where = "" if file is None else f"{file}: "
        if record is not None:
            where += f"record {record}: "
        super().__init__(where + message)
        self.file = None if file is None else str(file)
        self.record = record


class DownloadError(ForceUQError):
    """A file that could not be fetched, or whose size or checksum is not the published one."""


class FitError(ForceUQError):
    """A fit that failed: a non-finite loss, an evidence that cannot be evaluated, no training atoms."""


class ClusterError(ForceUQError):
    """A scheduler that does not answer, or whose queue stands against what is to be done."""
