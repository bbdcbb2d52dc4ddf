"""Post-hoc rescaling of the predictive covariance to ``a * floor + b * spread`` (the paper's eq. 12 and 13).

The mean never changes, and nothing but the in-distribution validation predictions is looked at.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.optimize import minimize

from forceuq.calibration_kinds import CALIBRATION_KINDS, CalibrationKind
from forceuq.errors import DataError, FitError
from forceuq.files import read_json, whole_file, write_json
from forceuq.parquet_schema import schema_metadata
from forceuq.predictions import VALIDATION_SPLIT, predictions_metadata, read_predictions
from forceuq.whitening import whiten

SCHEMA = "calibrations"
VERSION = 1
_START_B = (1e2, 1e4, 1e6)
_DECADES = 10.0
_CHUNK = 16_384

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """One fitted rescaling. NLL and Mahalanobis are as in ``forceuq.metrics``: 3 is a calibrated Mahalanobis.

    Args:
        kind: none (a = b = 1), temperature (a = b) or decoupled.
        a: factor of the floor.
        b: factor of the spread.
        nll_before: validation NLL at a = b = 1, divided by 3.
        nll_after: at (a, b).
        mahalanobis_before: mean squared Mahalanobis distance at a = b = 1.
        mahalanobis_after: at (a, b).
        fitted_on: the validation predictions' metadata (task, split, method, seed, ...).
        n_atoms: atoms fitted on.
        b_identified: False if every spread is zero, so that b has no effect (decoupled then says b = 1).
        at_bound: those of "a", "b" that the optimum drives to zero: they stand at the search's lower edge,
            ten decades under the scale of the residuals, where they no longer matter.
        starts: for each start of the search its name, the point, and where it ended.
    """

    kind: CalibrationKind
    a: float
    b: float
    nll_before: float
    nll_after: float
    mahalanobis_before: float
    mahalanobis_after: float
    fitted_on: Mapping[str, Any]
    n_atoms: int
    b_identified: bool = True
    at_bound: tuple[str, ...] = ()
    starts: tuple[Mapping[str, Any], ...] = ()


class ValidationLikelihood:
    """The validation NLL as a function of (a, b), held as d and q of ``forceuq.whitening``.

    Memory is 16 bytes an atom where the spread is a multiple of the floor (BLL), else 48.
    """

    def __init__(self, predictions: Path) -> None:
        """Read a predictions file.

        Raises:
            DataError: a file or record that cannot be used, with its row.
        """
        blocks = []
        row = 0
        for block in read_predictions(predictions):
            blocks.append(whiten(block, row, str(predictions)))
            row += len(block)
        self.n_atoms = row
        # A block where every spread is a multiple of its floor has one column; beside blocks that have
        # three, its q is shared out evenly, which leaves both the sums and the likelihood as they were.
        width = max(block.d.shape[1] for block in blocks)
        self._d = np.concatenate([np.repeat(x.d, width // x.d.shape[1], axis=1) for x in blocks]).ravel()
        self._q = np.concatenate(
            [np.repeat(x.q, width // x.q.shape[1], axis=1) * (x.q.shape[1] / width) for x in blocks]
        ).ravel()
        self._repeat = 3 // width
        self._log_det_floor = math.fsum(float(x.log_det_floor.sum()) for x in blocks)
        self.mean_d = float(self._d.mean())

    def sums(self, ratio: float) -> tuple[float, float]:
        """Return the mean per force component of log(1 + ratio d) and of q / (1 + ratio d).

        For ``b = ratio * a`` these are all that the likelihood needs.
        """
        logs, quadratic = [], []
        for start in range(0, len(self._d), _CHUNK):
            scale = 1.0 + ratio * self._d[start : start + _CHUNK]
            logs.append(float(np.log(scale).sum()))
            quadratic.append(float((self._q[start : start + _CHUNK] / scale).sum()))
        n = 3 * self.n_atoms
        return math.fsum(logs) * self._repeat / n, math.fsum(quadratic) / n

    def nll(self, a: float, b: float) -> float:
        """Return the mean negative log-likelihood per force component (eq. 13 divided by 3 N)."""
        logs, quadratic = self.sums(b / a)
        return self._nll(a, logs, quadratic)

    def _nll(self, a: float, logs: float, quadratic: float) -> float:
        constant = math.log(2.0 * math.pi) + self._log_det_floor / (3 * self.n_atoms)
        return 0.5 * (constant + math.log(a) + logs + quadratic / a)

    def mahalanobis(self, a: float, b: float) -> float:
        """Return the mean squared Mahalanobis distance of the 3-vectors (3 when calibrated)."""
        return 3.0 * self.sums(b / a)[1] / a

    def best_scale(self, ratio: float) -> float:
        """Return the a that minimises the NLL along ``b = ratio * a``: there the mean Mahalanobis is 3."""
        return self.sums(ratio)[1]

    def derivatives(self, a: float, b: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return gradient (2,) and Hessian (2, 2) of ``nll`` in (log a, log b)."""
        gradient, hessian = np.zeros(2), np.zeros((2, 2))
        m = self._repeat
        for start in range(0, len(self._d), _CHUNK):
            d, q = self._d[start : start + _CHUNK], self._q[start : start + _CHUNK]
            scale = a + b * d
            first = 0.5 * (m - q / scale) / scale
            second = 0.5 * (2.0 * q / scale - m) / scale**2
            parts = (np.full_like(d, a), b * d)
            for i, left in enumerate(parts):
                slope = float((first * left).sum())
                gradient[i] += slope
                hessian[i, i] += slope
                for j, right in enumerate(parts):
                    hessian[i, j] += float((second * left * right).sum())
        return gradient / (3 * self.n_atoms), hessian / (3 * self.n_atoms)

    def grid(self, log10_a: NDArray[np.float64], log10_b: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the NLL on a grid, (len(log10_a), len(log10_b)); each distinct ratio is summed once."""
        sums: dict[float, tuple[float, float]] = {}
        values = np.empty((len(log10_a), len(log10_b)))
        for i, log_a in enumerate(log10_a):
            for j, log_b in enumerate(log10_b):
                key = round(float(log_b - log_a), 9)
                if key not in sums:
                    sums[key] = self.sums(10.0**key)
                values[i, j] = self._nll(10.0 ** float(log_a), *sums[key])
        return values


def _polish(likelihood: ValidationLikelihood, point: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take Newton steps on (log a, log b) while they lower the gradient and do not raise the NLL."""
    value = likelihood.nll(*np.exp(point))
    gradient, hessian = likelihood.derivatives(*np.exp(point))
    for _ in range(20):
        if np.linalg.eigvalsh(hessian)[0] <= 1e-12:
            break
        step = np.linalg.solve(hessian, -gradient)
        size = np.abs(step).max()
        trial = point + step * min(1.0, 1.0 / max(size, 1e-300))
        trial_value = likelihood.nll(*np.exp(trial))
        trial_gradient, trial_hessian = likelihood.derivatives(*np.exp(trial))
        no_worse = trial_value <= value + 1e-14 * max(1.0, abs(value))
        if not no_worse or np.linalg.norm(trial_gradient) >= np.linalg.norm(gradient):
            break
        point, value, gradient, hessian = trial, trial_value, trial_gradient, trial_hessian
        if size < 1e-12:
            break
    return point


def _decoupled(
    likelihood: ValidationLikelihood, temperature: float
) -> tuple[float, float, tuple[str, ...], tuple[Mapping[str, Any], ...]]:
    """Minimise eq. (13) over log a and log b; return a, b, what stands at a bound, and the starts."""
    scale = np.array([temperature, temperature / likelihood.mean_d])
    lower, upper = (np.log(scale) + sign * _DECADES * math.log(10.0) for sign in (-1.0, 1.0))
    floor_alone = likelihood.best_scale(0.0)
    starts = {
        "raw": (1.0, 1.0),
        "temperature": (temperature, temperature),
        **{f"b = {b:g}": (floor_alone, b) for b in _START_B},
        "b on the spread's own scale": (floor_alone, float(scale[1])),
    }

    def objective(x: NDArray[np.float64]) -> float:
        return likelihood.nll(math.exp(x[0]), math.exp(x[1]))

    best, best_value = np.zeros(2), math.inf
    tried: list[Mapping[str, Any]] = []
    for name, point in starts.items():
        origin = np.clip(np.log(point), lower + 1.0, upper - 1.0)
        found = minimize(
            objective,
            origin,
            method="Nelder-Mead",
            bounds=list(zip(lower, upper, strict=True)),
            options={
                "initial_simplex": origin + np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
                "xatol": 1e-3,
                "fatol": 1e-9,
                "maxfev": 1000,
            },
        )
        a, b = np.exp(found.x)
        tried.append(
            {
                "start": name,
                "from": [float(x) for x in np.exp(origin)],
                "to": [float(a), float(b)],
                "nll": float(found.fun),
                "evaluations": int(found.nfev),
                "converged": bool(found.success),
            }
        )
        if found.fun < best_value:
            best, best_value = found.x, float(found.fun)
    best = np.clip(_polish(likelihood, best), lower, upper)
    a, b = (float(x) for x in np.exp(best))
    value = likelihood.nll(a, b)

    # An optimum at a = 0 or b = 0 is approached along a plateau, where a simplex stops anywhere.
    edge_a, edge_b = (float(x) for x in np.exp(lower))
    if floor_alone > 0 and likelihood.nll(floor_alone, edge_b) <= value + 1e-9:
        return floor_alone, edge_b, ("b",), tuple(tried)
    spread_alone = likelihood.sums(float(np.exp(upper[1] - lower[0])))[1] * float(np.exp(upper[1] - lower[0]))
    if spread_alone > 0 and likelihood.nll(edge_a, spread_alone) <= value + 1e-9:
        return edge_a, spread_alone, ("a",), tuple(tried)
    at_bound = tuple(n for n, x, low in zip("ab", best, lower, strict=True) if x - low < 1e-3)
    return a, b, at_bound, tuple(tried)


def fit_calibration(
    likelihood: ValidationLikelihood, kind: CalibrationKind, fitted_on: Mapping[str, Any]
) -> Calibration:
    """Fit one kind of rescaling to the validation likelihood.

    ``temperature`` has a closed form: T is a third of the mean squared Mahalanobis distance. ``decoupled`` is
    the paper's: Nelder-Mead on (log a, log b), from several starts (raw, temperature, and b = 10^2, 10^4,
    10^6, since the paper finds 10^5 to 10^6), the best one polished by Newton steps.

    Raises:
        FitError: the residuals are all zero, so that the likelihood has no maximum.
    """
    if kind not in CALIBRATION_KINDS:
        raise FitError(f"there is no calibration '{kind}'; there are {', '.join(CALIBRATION_KINDS)}")
    temperature = likelihood.best_scale(1.0)
    identified = likelihood.mean_d > 0.0
    a = b = 1.0
    at_bound: tuple[str, ...] = ()
    starts: tuple[Mapping[str, Any], ...] = ()
    if kind != "none":
        if temperature <= 0.0:
            raise FitError(
                f"every validation residual is zero ({likelihood.n_atoms} atoms): no covariance can be "
                "fitted; check that the predictions are not the reference forces themselves"
            )
        if kind == "temperature":
            a = b = temperature
        elif identified:
            a, b, at_bound, starts = _decoupled(likelihood, temperature)
        else:
            a = temperature
    if kind == "decoupled" and not identified:
        logger.warning("%s: the spread is zero everywhere; b is not identified and stays 1", dict(fitted_on))
    if at_bound:
        logger.warning("%s: the validation NLL falls as %s goes to 0", dict(fitted_on), " and ".join(at_bound))
    return Calibration(
        kind=kind,
        a=a,
        b=b,
        nll_before=likelihood.nll(1.0, 1.0),
        nll_after=likelihood.nll(a, b),
        mahalanobis_before=likelihood.mahalanobis(1.0, 1.0),
        mahalanobis_after=likelihood.mahalanobis(a, b),
        fitted_on=dict(fitted_on),
        n_atoms=likelihood.n_atoms,
        b_identified=identified,
        at_bound=at_bound,
        starts=starts,
    )


def fit_calibrations(
    predictions: Path, output: Path, kinds: Sequence[CalibrationKind] = CALIBRATION_KINDS
) -> tuple[Calibration, ...]:
    """Fit rescalings to the in-distribution validation predictions and write them as JSON.

    Args:
        predictions: a predictions file whose metadata says split "validation".
        output: the JSON file.
        kinds: the kinds, each once.

    Raises:
        DataError: predictions of another split, or that cannot be used.
        FitError: see ``fit_calibration``.
    """
    metadata = predictions_metadata(predictions)
    if metadata.get("split") != VALIDATION_SPLIT:
        raise DataError(
            f"holds the split '{metadata.get('split')}'; a calibration is fitted on '{VALIDATION_SPLIT}' "
            "predictions only",
            file=predictions,
        )
    fitted_on = {k: v for k, v in metadata.items() if k not in ("schema", "version", "n_atoms")}
    likelihood = ValidationLikelihood(predictions)
    calibrations = tuple(fit_calibration(likelihood, kind, fitted_on) for kind in kinds)
    write_json(
        output,
        {"schema": SCHEMA, "version": VERSION, "calibrations": [asdict(c) for c in calibrations]},
    )
    return calibrations


def read_calibrations(path: Path) -> tuple[Calibration, ...]:
    """Read what ``fit_calibrations`` wrote.

    Raises:
        DataError: the file is missing, damaged or of another schema.
    """
    try:
        value = read_json(path)
        if (value["schema"], value["version"]) != (SCHEMA, VERSION):
            raise DataError(f"is not of schema '{SCHEMA}' version {VERSION}; make it again", file=path)
        return tuple(
            Calibration(**{**c, "at_bound": tuple(c["at_bound"]), "starts": tuple(c["starts"])})
            for c in value["calibrations"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"not a calibrations file ({error!r}); make it again", file=path) from error


def nll_surface(predictions: Path, output: Path, log10_a: Sequence[float], log10_b: Sequence[float]) -> None:
    """Write the validation NLL over a grid of (a, b): the data of Figure 1.

    Args:
        predictions: validation predictions.
        output: Parquet with columns log10_a, log10_b, nll (per force component), a row a grid point.
        log10_a: the grid's values of log10 a.
        log10_b: likewise of b.
    """
    grid_a, grid_b = np.asarray(log10_a, dtype=float), np.asarray(log10_b, dtype=float)
    values = ValidationLikelihood(predictions).grid(grid_a, grid_b)
    a, b = np.meshgrid(grid_a, grid_b, indexing="ij")
    metadata = {k: v for k, v in predictions_metadata(predictions).items() if k not in ("schema", "version")}
    table = pa.table(
        {"log10_a": a.ravel(), "log10_b": b.ravel(), "nll": values.ravel()},
        metadata=schema_metadata("nll-surface", 1, metadata),
    )
    with whole_file(output) as temporary:
        pq.write_table(table, temporary)
