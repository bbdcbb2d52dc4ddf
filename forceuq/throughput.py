"""Atoms a second of caching, training and predicting on a device, as kept in a file once they were measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from forceuq.errors import DataError
from forceuq.files import whole_file

if TYPE_CHECKING:
    from forceuq.configuration.models import Configuration


# Of the way of measuring, counted up where numbers of an earlier one were wrong.
REVISION = 2


class Throughput(BaseModel):
    """What was measured on one device."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Literal["cpu", "cuda"] = Field(description="Where the models ran.")
    hardware: str = Field(description="What it is: processor or GPU.")
    cores: int = Field(ge=1, description="Processor cores that the measured process had.")
    load: float | None = Field(default=None, description="Load average of the machine when it was measured.")
    backbone: str = Field(description="Name or architecture of the backbone.")
    width: int | None = Field(ge=1, description="Node features of an atom; null: the backbone could not be run.")
    measured: str = Field(description="When: a date.")
    revision: int = Field(
        default=1, description="Of the way of measuring; what was kept of an earlier one is measured anew."
    )
    versions: dict[str, str] = Field(default={}, description="Of the packages that matter.")
    rates: dict[str, PositiveFloat] = Field(
        description="Atoms a second: `read` (of MPtrj's JSON), `cache`, `metrics` (of one calibration), and with a kind"
        " of method `training` (an epoch, validation included; `training bll mse` on that objective, which takes less),"
        " `single fit` (of fits without epochs) and `prediction`."
    )

    def rate(self, name: str) -> float | None:
        """Return atoms a second; None where it was not measured.

        A record without ``training bll mse`` has ``training bll`` for both.
        """
        return self.rates.get(name) or self.rates.get(name.rpartition(" ")[0])


def read_throughput(path: Path) -> Throughput:
    """Read a record.

    Raises:
        DataError: it is not there, or is not a record.
    """
    try:
        return Throughput.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise DataError("there is no such record; make it with benchmarks/throughput.py", file=path) from None
    except (ValidationError, yaml.YAMLError) as error:
        raise DataError(f"not a record of throughputs ({error})", file=path) from error


def write_throughput(record: Throughput, path: Path) -> None:
    """Write a record as YAML."""
    with whole_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(record.model_dump(), sort_keys=False), encoding="utf-8")


def recorded(configuration: "Configuration", files: Sequence[Path]) -> dict[str, Throughput]:
    """Read records of the configuration's backbone, by device.

    Raises:
        DataError: no record, a record of another backbone, or two of one kind of device.
    """
    found: dict[str, Throughput] = {}
    for file in files:
        record = read_throughput(file)
        if configuration.backbone is None or record.backbone != configuration.backbone.name:
            raise DataError(f"is of the backbone {record.backbone}, which this configuration does not use", file=file)
        if record.device in found:
            raise DataError(f"a second record of the device '{record.device}'; give one", file=file)
        found[record.device] = record
    return found
