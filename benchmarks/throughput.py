"""Measure what caching, training and predicting take on this machine, and write the record that `make plan` reads.

    python benchmarks/throughput.py NAME [--configfile FILE ...] [--device cuda] [--structures N]

writes ``benchmarks/throughput/NAME.yaml``: atoms a second of the backbone and the methods of a configuration, with the
hardware's name. Weights that are not at hand are replaced by random ones, which take as long. More structures are
more exact; on a GPU take enough to fill it.
"""

import argparse
import tempfile
from pathlib import Path

from snakemake.utils import update_config

from forceuq.configuration import load_configuration, read_configuration
from forceuq.throughput import write_throughput
from forceuq.throughput_measurement import measure

RECORDS = Path(__file__).parent / "throughput"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the record")
    parser.add_argument("--configfile", nargs="+", default=["config/demo.yaml"], help="configuration and overlays")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--structures", type=int, default=160)
    given, values = parser.parse_args(), {}
    for file in given.configfile:
        update_config(values, read_configuration(Path(file)))
    configuration = load_configuration(values)
    with tempfile.TemporaryDirectory() as folder:
        record = measure(configuration, Path(folder), given.device, given.structures)
    write_throughput(record, RECORDS / f"{given.name}.yaml")
    print((RECORDS / f"{given.name}.yaml").read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
