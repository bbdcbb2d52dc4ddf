"""An exact Gaussian process on the backbone's own last features: atoms as inputs, force components as outputs."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from forceuq.errors import ConfigurationError, FitError
from forceuq.files import read_json, whole_file, write_json
from forceuq.methods import BackboneSource, StructurePart, TrainingData
from forceuq.methods._saved import options_and_seed, write_saved
from forceuq.predictions import PredictionBlock, pack_symmetric

if TYPE_CHECKING:
    from torch import Tensor

    from forceuq.backbones.head import ForceHead
    from forceuq.features.cache import FeatureReader
    from forceuq.gp.exact import Trace
    from forceuq.gp.iterative import Settings
    from forceuq.gp.kernels import Hyperparameters
    from forceuq.gp.solvers import Posterior

_LOGGER = logging.getLogger(__name__)
_SCHEMA = "gp"
_TENSORS = ("features", "alpha", "centre", "scale", "hyperparameters", "target_scale")


class Options(BaseModel):
    """Settings of a Gaussian process; the paper says which kernels, the rest is our choice."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kernel: Literal["rbf", "matern52"] = Field(default="rbf", description="Of the standardised features' distance.")
    subset: int = Field(
        default=2000, ge=2, description="Random training atoms on which the hyperparameters are found first."
    )
    subset_evaluations: int = Field(default=100, ge=1, description="Evaluations of the marginal likelihood there.")
    evaluations: int = Field(
        default=5,
        ge=0,
        description="Further evaluations on all training atoms; the posterior is always that of all.",
    )
    min_noise: float = Field(
        default=1e-6, gt=0.0, lt=1.0, description="Smallest variance of the noise, as a share of the targets'."
    )
    max_memory_gb: float = Field(
        default=12.0,
        gt=0.0,
        description="Memory (GiB) that it may take; with more atoms than fit, it refuses to start.",
    )
    solver: Literal["auto", "cholesky", "cg"] = Field(
        default="auto",
        description="Cholesky, or preconditioned conjugate gradients (slower, without a matrix of all pairs of atoms);"
        " auto: Cholesky where the memory does for it.",
    )
    preconditioner_rank: int = Field(default=500, ge=1, description="With cg: of the pivoted Cholesky preconditioner.")
    cg_tolerance: float = Field(
        default=1e-6,
        gt=0.0,
        lt=1.0,
        description="With cg: largest error of a mean, in units of the targets' root mean square, and of a variance,"
        " as a share of itself. Where rounding is in the way, a tenth of the noise's deviation is accepted and told.",
    )
    max_cg_iterations: int = Field(default=2000, ge=1, description="With cg: of one solve; with more it fails.")
    probes: int = Field(
        default=16, ge=1, description="With cg: random vectors from which the marginal likelihood is estimated."
    )
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="Where it is fitted and predicts.")


@dataclass
class FittedGP:
    """A Gaussian process with its training atoms.

    Args:
        options: it was fitted with.
        seed: likewise, of the subset.
        head: whose hidden layers make the features.
        tensors: features (n, D) float32, alpha (n, 3), centre and scale (D,) of the features, hyperparameters (3,)
            and target_scale (1,) eV/Å.
        report: what was done.
    """

    options: Options
    seed: int
    head: "ForceHead"
    tensors: dict[str, NDArray[Any]]
    report: dict[str, Any]
    _posterior: "Posterior | None" = field(default=None, repr=False)

    def save(self, directory: Path) -> None:
        """Write the training atoms' features and weights, hyperparameters, options and report.

        Not the n x n factor or the preconditioner: they are large, and made again in a part of one evaluation.
        """
        from safetensors.numpy import save_file

        directory.mkdir(parents=True, exist_ok=True)
        self.head.save(directory / "projection.safetensors")
        with whole_file(directory / "gp.safetensors") as temporary:
            save_file(self.tensors, temporary, metadata={"forceuq": _SCHEMA})
        write_json(directory / "report.json", self.report)
        write_saved(directory, "gp", self.seed, self.options)

    def predict(
        self, feature_dirs: Sequence[Path], structures: Sequence[StructurePart] = ()
    ) -> Iterator[PredictionBlock]:
        """Yield mean (ZBL added back), floor (the noise) and spread (the function's variance) of every atom.

        Both covariances are multiples of the identity: the components share one kernel and one noise.

        Raises:
            DataError: a cache that is damaged, or of another width than the head takes.
            FitError: a kernel matrix too ill-conditioned to predict with.
        """
        import torch

        from forceuq.bll.batches import check_width
        from forceuq.features.cache import FeatureReader
        from forceuq.gp.kernels import Hyperparameters
        from forceuq.gp.solvers import posterior

        reader = FeatureReader(feature_dirs)
        check_width([reader], self.head)
        device = _device(self.options)
        parameters = Hyperparameters(*self.tensors["hyperparameters"].tolist())
        scale = float(self.tensors["target_scale"][0])
        inputs = self._inputs(self.tensors["features"], device)
        alpha = torch.from_numpy(self.tensors["alpha"]).to(device)
        if self._posterior is None:
            self._posterior = posterior(self.report["solver"], self.options.kernel, parameters, _settings(self.options))
            self._posterior.prepare(inputs)
        atoms = self._posterior.atoms(len(inputs))
        unit = pack_symmetric(np.eye(3))
        for block in reader.blocks():
            at = self._inputs(self.head.penultimate(block.features), device)
            # Few atoms at a time: the covariances with all training atoms are n numbers each.
            parts = [self._posterior.predict(inputs, alpha, rows) for rows in torch.split(at, atoms)]
            mean = torch.cat([part[0] for part in parts]).cpu().numpy() * scale
            variance = torch.cat([part[1] for part in parts]).cpu().numpy() * scale**2
            yield PredictionBlock(
                structure=block.structure,
                atom=block.atom,
                number=block.number,
                part=np.full(len(block), block.part_index, dtype=np.int16),
                target=block.force,
                mean=mean + block.zbl,
                floor=np.broadcast_to(parameters.noise * scale**2 * unit, (len(block), 6)),
                spread=variance[:, None] * unit,
            )

    def _inputs(self, features: NDArray[np.float32], device: str) -> "Tensor":
        import torch

        standardised = (features.astype(np.float64) - self.tensors["centre"]) / self.tensors["scale"]
        return torch.from_numpy(standardised).to(device)


def fit(
    data: TrainingData, options: Options, seed: int, checkpoints: Path, starts_from: Path | None = None
) -> FittedGP:
    """Fit an exact Gaussian process to all training atoms.

    Features are those of the pretrained head, standardised on the training atoms; targets, forces less what the
    backbone adds after its head (ZBL), are divided by their root mean square. One kernel and one noise serve the
    three components, so they share one factorisation.

    Args:
        data: feature caches and force head; validation parts are not used.
        options: settings.
        seed: of the subset on which the hyperparameters are found first.
        checkpoints: directory of the evaluations made so far.
        starts_from: must be None.

    Raises:
        ConfigurationError: ``starts_from`` is given, or there is no GPU for ``device: cuda``.
        FitError: too many atoms for the memory, before anything is computed; forces that are all zero; a
            covariance that is not positive definite, or an NLML that is not finite.
        DataError: damaged or mismatched caches.
    """
    import torch

    from forceuq.backbones.head import ForceHead
    from forceuq.bll.batches import check_width
    from forceuq.features.cache import FeatureReader
    from forceuq.gp.exact import optimise
    from forceuq.gp.iterative import ProbedLikelihood
    from forceuq.gp.kernels import Hyperparameters, median_distance
    from forceuq.gp.solvers import choose, posterior

    if starts_from is not None:
        raise ConfigurationError("starts_from: a Gaussian process starts from no fit; drop starts_from")
    device = _device(options)
    reader = FeatureReader(data.train)
    head = ForceHead.load(data.head)
    check_width([reader], head)
    settings = _settings(options)
    solver = choose(
        options.solver,
        reader.n_atoms,
        len(head.weights[-1][1]),
        settings,
        options.max_memory_gb,
        options.subset,
        device,
    )

    features, targets = _read(reader, head)
    centre = features.mean(axis=0, dtype=np.float64)
    deviation = features.std(axis=0, dtype=np.float64)
    target_scale = float(np.sqrt(np.mean(targets**2)))
    if target_scale == 0.0:
        raise FitError("the forces on all training atoms are zero: there is nothing to fit")
    tensors: dict[str, NDArray[Any]] = {
        "features": features,
        "centre": centre,
        # A feature that is the same for all atoms says nothing, whatever its scale.
        "scale": np.where(deviation > 1e-12 * np.abs(features).max(initial=1.0), deviation, 1.0),
        "target_scale": np.array([target_scale]),
    }
    fitted = FittedGP(options, seed, head, tensors, {})
    x = fitted._inputs(features, device)
    y = torch.from_numpy(targets / target_scale).to(device)

    traces, seconds = _Checkpoint(checkpoints / "gp.json", _key(reader, head, options, seed)), {}
    began = time.perf_counter()
    chosen = np.sort(np.random.default_rng(seed).permutation(len(x))[: options.subset])
    some = x[chosen]
    start = Hyperparameters(median_distance(some), 1.0, max(0.1, options.min_noise))
    parameters = optimise(
        options.kernel,
        some,
        y[chosen],
        start,
        traces.subset,
        max_evaluations=options.subset_evaluations,
        min_noise=options.min_noise,
    )
    seconds["subset"] = time.perf_counter() - began
    began = time.perf_counter()
    probed = ProbedLikelihood(options.kernel, x, y, parameters, settings, seed) if solver == "cg" else None
    if options.subset < len(x):
        parameters = optimise(
            options.kernel,
            x,
            y,
            parameters,
            traces.all,
            max_evaluations=options.evaluations,
            min_noise=options.min_noise,
            likelihood=probed,
        )
    seconds["all atoms"] = time.perf_counter() - began
    began = time.perf_counter()
    fitted._posterior = posterior(solver, options.kernel, parameters, settings)
    fitted._posterior.prepare(x)
    alpha, solving = fitted._posterior.solve(x, y)
    tensors["alpha"] = alpha.contiguous().cpu().numpy()
    tensors["hyperparameters"] = np.array([parameters.lengthscale, parameters.outputscale, parameters.noise])
    seconds["posterior"] = time.perf_counter() - began
    fitted.report.update(_report(reader, options, parameters, target_scale, traces, seconds))
    fitted.report.update({"solver": solver, **solving})
    return fitted


def load(directory: Path, backbone: BackboneSource | None = None) -> FittedGP:
    """Read what ``FittedGP.save`` wrote.

    Raises:
        DataError: a file is missing or damaged.
        ConfigurationError: the directory is a fit of another kind.
    """
    from forceuq.backbones.head import ForceHead
    from forceuq.bll.tensors import load_tensors

    options, seed = options_and_seed(directory, "gp", Options)
    return FittedGP(
        options,
        seed,
        ForceHead.load(directory / "projection.safetensors"),
        load_tensors(directory / "gp.safetensors", _SCHEMA, _TENSORS),
        read_json(directory / "report.json"),
    )


def _device(options: Options) -> str:
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device: cuda, but torch finds no GPU here; use device: cpu")
    return options.device


def _settings(options: Options) -> "Settings":
    from forceuq.gp.iterative import Settings

    return Settings(options.preconditioner_rank, options.cg_tolerance, options.max_cg_iterations, options.probes)


def _read(reader: "FeatureReader", head: "ForceHead") -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    features = np.empty((reader.n_atoms, len(head.weights[-1][1])), dtype=np.float32)
    targets = np.empty((reader.n_atoms, 3))
    row = 0
    for block in reader.blocks():
        features[row : row + len(block)] = head.penultimate(block.features)
        targets[row : row + len(block)] = block.force - block.zbl
        row += len(block)
    return features, targets


def _key(reader: "FeatureReader", head: "ForceHead", options: Options, seed: int) -> str:
    import hashlib

    # What has no part in the evaluations: a fit whose last solve failed goes on with other values of these.
    what = options.model_dump_json(exclude={"cg_tolerance", "max_cg_iterations"})
    digest = hashlib.sha256(f"{reader.digest()} {what} {seed}".encode())
    for weight, bias in head.weights:
        digest.update(np.ascontiguousarray(weight).tobytes() + np.ascontiguousarray(bias).tobytes())
    return digest.hexdigest()


class _Checkpoint:
    """The evaluations of both optimisations, in a file."""

    def __init__(self, path: Path, key: str) -> None:
        from forceuq.errors import DataError
        from forceuq.gp.exact import Trace

        self.path, self.key = path, key
        found: dict[str, Any] = {}
        if path.exists():
            try:
                found = read_json(path)
                if found["key"] != key:
                    _LOGGER.warning("%s is of another fit; starting anew", path)
                    found = {}
                self.subset, self.all = (Trace(**found.get(name, {}), save=self.save) for name in ("subset", "all"))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(f"damaged checkpoint ({error!r}): delete it, the fit starts anew", file=path) from error
        else:
            self.subset, self.all = Trace(save=self.save), Trace(save=self.save)

    def save(self) -> None:
        """Write the file."""
        values = {name: _plain(trace) for name, trace in (("subset", self.subset), ("all", self.all))}
        write_json(self.path, {"key": self.key, **values})


def _plain(trace: "Trace") -> dict[str, Any]:
    return {"points": trace.points, "values": trace.values, "gradients": trace.gradients}


def _report(
    reader: "FeatureReader",
    options: Options,
    parameters: "Hyperparameters",
    target_scale: float,
    traces: _Checkpoint,
    seconds: dict[str, float],
) -> dict[str, Any]:
    return {
        "options": options.model_dump(mode="json"),
        "atoms": reader.n_atoms,
        "structures": reader.n_structures,
        # Lengthscale, outputscale and noise.
        "parameters": {"trained": 3},
        "passes": {"backbone": 1, "head": 1},
        "seconds": seconds,
        "hyperparameters": {**asdict(parameters), "target_scale": target_scale},
        "nlml": {"subset": traces.subset.values, "all": traces.all.values},
    }
