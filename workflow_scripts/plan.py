"""Print what a configuration will cost: ``plan.py [--configfile FILE ...] [--device RECORD ...]``."""

import argparse
import sys
from pathlib import Path

from snakemake.utils import update_config

from forceuq.configuration import load_configuration, read_configuration
from forceuq.errors import ConfigurationError, ForceUQError
from forceuq.plan import report
from forceuq.tables import paper_values
from forceuq.throughput import recorded
from forceuq.throughput_measurement import measured_here

RECORDS = Path(__file__).parents[1] / "benchmarks" / "throughput"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configfile", nargs="+", default=["config/demo.yaml"], help="configuration and overlays")
    parser.add_argument("--device", nargs="+", default=[], help=f"records in {RECORDS}; none: measure this machine")
    parser.add_argument("--structures", type=int, default=40, help="structures to measure on")
    given, values = parser.parse_args(), {}
    try:
        for file in given.configfile:
            update_config(values, read_configuration(Path(file)))
        configuration = load_configuration(values)
        if configuration.train_backbone is not None:
            names = ", ".join(given.configfile)
            raise ConfigurationError(f"{names}: trains a backbone, which has no plan; plans are of benchmarks")
        if given.device:
            records = recorded(configuration, [RECORDS / f"{name}.yaml" for name in given.device])
        else:
            kept = Path(configuration.results) / "cache" / "throughput"
            records = measured_here(configuration, kept, given.structures)
    except ForceUQError as error:
        sys.exit(str(error))
    print(report(configuration, records, paper_values()["table1"]["BLL"]["train"]))


if __name__ == "__main__":
    main()
