"""A logger of Snakemake that writes when jobs were announced, submitted and finished, a JSON line an event."""

import json
import os
import re
from logging import LogRecord
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent


class LogHandler(LogHandlerBase):
    """Appends to ``events`` in the folder that SLEEPING_JOBS names; the jobs find there what they have to make."""

    writes_to_stream = False
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def emit(self, record: LogRecord) -> None:
        """Write the event, if it is one of these."""
        event = getattr(record, "event", None)
        if event == LogEvent.GROUP_INFO:
            self._write(record, "group")
        elif event == LogEvent.JOB_INFO and not record.local:
            wildcards = ",".join(f"{name}={value}" for name, value in record.wildcards.items())
            # The job's name on the command line, but that a wildcard may be a path.
            name = f"{record.rule_name}:{wildcards}".replace("/", "%")
            outputs = Path(os.environ["SLEEPING_JOBS"], "outputs", name)
            outputs.write_text("".join(f"{file}\n" for file in (*record.output, record.benchmark)))
            files = {"inputs": list(map(str, record.input)), "outputs": list(map(str, record.output))}
            self._write(record, "announced", job=record.jobid, grouped=record.indent, **files)
        elif event == LogEvent.JOB_FINISHED:
            self._write(record, "finished", job=record.job_id)
        elif re.match(r"Job \S+ has been submitted with SLURM jobid", record.getMessage()):
            self._write(record, "submitted")

    def _write(self, record: LogRecord, event: str, **more: object) -> None:
        with Path(os.environ["SLEEPING_JOBS"], "events").open("a") as handle:
            handle.write(json.dumps({"time": record.created, "event": event, **more}) + "\n")
