"""The names of the post-hoc calibrations, apart from their code so that the configuration stays light."""

from typing import Literal, get_args

CalibrationKind = Literal["none", "temperature", "decoupled"]
CALIBRATION_KINDS: tuple[CalibrationKind, ...] = get_args(CalibrationKind)
