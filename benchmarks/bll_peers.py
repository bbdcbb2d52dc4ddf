"""The evidence BLL beside others' Bayesian last layers on the same ill-conditioned features: time, memory, test NLL.

    pip install --no-deps --target FOLDER --requirement benchmarks/requirements.txt
    PYTHONPATH=FOLDER:. python benchmarks/bll_peers.py [--atoms N ...] [--only NAME ...] [--noise correlated|isotropic]

Synthetic atoms with 256 features in float32, of condition number 1e5 (1e10 for Phi^T Phi), and three targets that are
linear in them with weights from N(0, 1). The noise differs and is correlated between targets, which only ours models
in full, or, with ``isotropic``, is what the peers assume. Everyone reads the same two files of plain arrays; what can
stream, streams blocks. Each fit runs in a process of its own, with one thread. Seconds are processor time from the
files to something that predicts, reading included, so that a loaded machine tells the same; memory is what the peak
rises by, libraries loaded; NLL is of 10,000 other atoms, in nats an atom, of the joint Gaussian of its three targets.

What a trained network would bring, Laplace and LLPR are given, and its time is not counted: the head that maximises
the posterior under one prior precision and one noise, both at their maximum evidence. Laplace's own marginal
likelihood is then stationary where it is the exact one. It is maximised as ``optimize_prior_precision`` does, by 100
steps of Adam over the logarithm of one prior precision, and that of sigma beside it, from 1 and the residual's sigma;
the curvature is BackPACK's, which is faster here than the default backend's. laplace-torch's predictive covariance
leaves sigma^2 out, which is added. scikit-learn's models fit one target after the other, from arrays in memory. LLPR's
one scalar is fitted to atoms that are neither trained on nor tested.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WIDTH, TARGETS = 256, 3
SMALLEST = 1e-5  # of the features' standard deviations along their principal axes, the largest being 1
DEVIATION = np.array([0.04, 0.05, 0.06])
CORRELATION = np.array([[1.0, 0.3, 0.2], [0.3, 1.0, 0.25], [0.2, 0.25, 1.0]])
BLOCK = 8192
HELD_OUT = 10_000
ADAM_STEPS = 100
MEMORY = 9 * 2**30

Floats = NDArray[np.float64]
Predictive = tuple[Floats, Floats]  # mean (n, K) and covariance, noise included, (n, K, K)
Predict = Callable[[Floats], Predictive]


class Atoms:
    """The files of one size, read in blocks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.n = (folder / "targets").stat().st_size // (8 * TARGETS)

    def blocks(self) -> Iterator[tuple[NDArray[np.float32], Floats]]:
        """Yield features (n, D) and targets (n, K), which the next ones overwrite."""
        phi, y = np.empty((BLOCK, WIDTH), np.float32), np.empty((BLOCK, TARGETS))
        with (self.folder / "features").open("rb", 0) as features, (self.folder / "targets").open("rb", 0) as targets:
            for start in range(0, self.n, BLOCK):
                n = min(BLOCK, self.n - start)
                features.readinto(phi[:n].data)
                targets.readinto(y[:n].data)
                yield phi[:n], y[:n]

    def whole(self) -> tuple[Floats, Floats]:
        """Return features and targets of all atoms, as scikit-learn computes with them."""
        phi, y = np.empty((self.n, WIDTH)), np.empty((self.n, TARGETS))
        start = 0
        for features, targets in self.blocks():
            phi[start : start + len(features)], y[start : start + len(features)] = features, targets
            start += len(features)
        return phi, y

    def held_out(self, name: str) -> tuple[Floats, Floats]:
        """Return features and targets of atoms that are not trained on."""
        stored = np.load(self.folder / "held_out.npz")
        return stored[f"{name}_features"].astype(np.float64), stored[f"{name}_targets"]

    def head(self) -> Floats:
        """Return the weights (D, K) that a trained network would bring."""
        return np.asarray(np.load(self.folder / "held_out.npz")["head"])


def noise_covariance(noise: str) -> Floats:
    if noise == "isotropic":
        return np.eye(TARGETS) * np.mean(DEVIATION**2)
    return np.asarray(DEVIATION[:, None] * CORRELATION * DEVIATION)


def generate(folder: Path, n: int, noise: str) -> None:
    random = np.random.default_rng(11)
    axes = np.linalg.qr(random.normal(size=(WIDTH, WIDTH)))[0]
    mixing = (np.geomspace(1.0, SMALLEST, WIDTH)[:, None] * axes).astype(np.float32)
    weights = random.normal(size=(WIDTH, TARGETS))
    factor = np.linalg.cholesky(noise_covariance(noise))

    def some(seed: int, count: int) -> tuple[NDArray[np.float32], Floats]:
        random = np.random.default_rng([12, seed])
        phi = random.standard_normal((count, WIDTH), dtype=np.float32) @ mixing
        return phi, phi @ weights + random.normal(size=(count, TARGETS)) @ factor.T

    gram, cross, square = np.zeros((WIDTH, WIDTH)), np.zeros((WIDTH, TARGETS)), 0.0
    with (folder / "features").open("wb") as features, (folder / "targets").open("wb") as targets:
        for start in range(0, n, BLOCK):
            phi, y = some(start + 2, min(BLOCK, n - start))
            phi.tofile(features)
            y.tofile(targets)
            phi64 = phi.astype(np.float64)
            gram, cross, square = gram + phi64.T @ phi64, cross + phi64.T @ y, square + float(np.sum(y * y))
    held = {}
    for seed, name in enumerate(("calibration", "test")):
        held[f"{name}_features"], held[f"{name}_targets"] = some(seed, HELD_OUT)
    np.savez(folder / "held_out.npz", head=best_ridge(gram, cross, square, n), **held)


def best_ridge(gram: Floats, cross: Floats, square: float, n: int) -> Floats:
    """Return the ridge solution at the precision and sigma that maximise the evidence (MacKay 1992), (D, K)."""
    eigenvalues, vectors = np.linalg.eigh(gram)
    eigenvalues = np.maximum(eigenvalues, 0.0)
    projected = vectors.T @ cross
    precision, beta = 1.0, n * TARGETS / square
    for _ in range(10_000):
        shrunk = beta * projected / (beta * eigenvalues + precision)[:, None]
        gamma = float(np.sum(TARGETS * beta * eigenvalues / (beta * eigenvalues + precision)))
        residual = square - 2.0 * float(np.sum(shrunk * projected)) + float(np.sum(eigenvalues @ shrunk**2))
        new_precision, new_beta = gamma / float(np.sum(shrunk**2)), (n * TARGETS - gamma) / residual
        done = abs(np.log(new_precision / precision)) + abs(np.log(new_beta / beta)) < 1e-10
        precision, beta = new_precision, new_beta
        if done:
            return np.asarray(vectors @ shrunk)
    raise SystemExit("the network's head was not found")


def negative_log_likelihood(y: Floats, predictive: Predictive) -> float:
    mean, covariance = predictive
    factor = np.linalg.cholesky(covariance)
    white = np.linalg.solve(factor, (y - mean)[:, :, None])[:, :, 0]
    logs = np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(axis=1)
    return float(np.mean(0.5 * np.sum(white**2, axis=1) + logs) + 0.5 * TARGETS * np.log(2.0 * np.pi))


def ours(atoms: Atoms) -> tuple[Predict, dict[str, float]]:
    return _ours(atoms, isotropic=False)


def ours_isotropic(atoms: Atoms) -> tuple[Predict, dict[str, float]]:
    return _ours(atoms, isotropic=True)


def _ours(atoms: Atoms, isotropic: bool) -> tuple[Predict, dict[str, float]]:
    from forceuq.bll.evidence import fit_evidence
    from forceuq.bll.posterior import Posterior
    from forceuq.bll.statistics import accumulate

    began = time.process_time()
    statistics = accumulate(atoms.blocks(), WIDTH, TARGETS)
    passed = time.process_time()
    found = fit_evidence(statistics, isotropic)
    posterior = Posterior.from_statistics(statistics, found.precision, found.noise)

    def predict(phi: Floats) -> Predictive:
        return posterior.predict(phi), (1.0 + posterior.variance_factor(phi))[:, None, None] * posterior.noise

    return predict, {"pass": passed - began, "steps": found.evaluations, "slope": found.gradient_norm}


def laplace_full(atoms: Atoms) -> tuple[Predict, dict[str, float]]:
    return _laplace(atoms, "full")


def laplace_kron(atoms: Atoms) -> tuple[Predict, dict[str, float]]:
    return _laplace(atoms, "kron")


def _laplace(atoms: Atoms, structure: str) -> tuple[Predict, dict[str, float]]:
    import torch
    from laplace import Laplace
    from laplace.curvature import BackPackGGN

    batch = 1024 if structure == "full" else 4096  # the fastest of 256, 512, 1024 and 4096

    class Loader:
        dataset = range(atoms.n)

        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for phi, y in atoms.blocks():
                for start in range(0, len(phi), batch):
                    rows = slice(start, start + batch)
                    yield torch.from_numpy(phi[rows].astype(np.float64)), torch.from_numpy(y[rows])

    began = time.process_time()
    torch.set_default_dtype(torch.float64)
    layer = torch.nn.Linear(WIDTH, TARGETS, bias=False)
    layer.weight.data = torch.from_numpy(np.ascontiguousarray(atoms.head().T))
    fitted = Laplace(
        torch.nn.Sequential(torch.nn.Identity(), layer),
        "regression",
        subset_of_weights="last_layer",
        hessian_structure=structure,
        backend=BackPackGGN,
    )
    fitted.fit(Loader())
    passed = time.process_time()
    log_sigma = 0.5 * torch.log(2.0 * fitted.loss / (atoms.n * TARGETS)).detach().reshape(1)
    log_precision = torch.zeros(1, requires_grad=True)
    log_sigma.requires_grad = True
    optimizer = torch.optim.Adam([log_precision, log_sigma], lr=0.1)
    for _ in range(ADAM_STEPS):
        optimizer.zero_grad()
        loss = -fitted.log_marginal_likelihood(log_precision.exp(), log_sigma.exp())
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        fitted.prior_precision, fitted.sigma_noise = log_precision.exp(), log_sigma.exp()
    noise = float(fitted.sigma_noise.detach()) ** 2 * np.eye(TARGETS)
    slope = max(float(value.grad.abs().max()) for value in (log_precision, log_sigma))

    def predict(phi: Floats) -> Predictive:
        parts = [fitted(torch.from_numpy(part)) for part in np.array_split(phi, 20)]
        mean, variance = (torch.cat(values).detach().numpy() for values in zip(*parts, strict=True))
        return mean, variance + noise

    return predict, {"pass": passed - began, "steps": ADAM_STEPS, "slope": slope}


def bayesian_ridge(atoms: Atoms) -> tuple[Predict, dict[str, float]]:
    from sklearn.linear_model import BayesianRidge

    return _sklearn(atoms, BayesianRidge)


def ard_regression(atoms: Atoms) -> tuple[Predict, dict[str, float]]:
    from sklearn.linear_model import ARDRegression

    return _sklearn(atoms, ARDRegression)


def _sklearn(atoms: Atoms, kind: type) -> tuple[Predict, dict[str, float]]:
    began = time.process_time()
    phi, y = atoms.whole()
    passed = time.process_time()
    models = [kind(fit_intercept=False, copy_X=False).fit(phi, y[:, k]) for k in range(TARGETS)]

    def predict(phi: Floats) -> Predictive:
        found = [model.predict(phi, return_std=True) for model in models]
        deviations = np.stack([deviation for _, deviation in found], axis=1)
        return np.stack([mean for mean, _ in found], axis=1), deviations[:, :, None] ** 2 * np.eye(TARGETS)

    return predict, {"pass": passed - began, "steps": max(model.n_iter_ for model in models), "slope": float("nan")}


def llpr(atoms: Atoms) -> tuple[Predict, dict[str, float]]:
    """alpha^2 phi^T (Phi^T Phi + s^2 1)^-1 phi (Bigi et al. 2024, https://doi.org/10.1088/2632-2153/ad805f)."""
    from scipy.linalg import cholesky, solve_triangular

    began = time.process_time()
    gram = np.zeros((WIDTH, WIDTH))
    for phi, _ in atoms.blocks():
        rows = phi.astype(np.float64)
        gram += rows.T @ rows
    passed = time.process_time()
    # The least that leaves the inverse accurate.
    factor = cholesky(gram + 1e-12 * np.trace(gram) * np.eye(WIDTH), lower=True)
    head = atoms.head()

    def predicted(phi: Floats) -> tuple[Floats, Floats]:
        white = solve_triangular(factor, phi.T, lower=True)
        return phi @ head, np.einsum("dn,dn->n", white, white)

    phi, y = atoms.held_out("calibration")
    mean, shape = predicted(phi)
    scalar = float(np.mean((y - mean) ** 2 / shape[:, None]))

    def predict(phi: Floats) -> Predictive:
        mean, shape = predicted(phi)
        return mean, scalar * shape[:, None, None] * np.eye(TARGETS)

    return predict, {"pass": passed - began, "steps": 0, "slope": float("nan")}


METHODS: dict[str, tuple[str, Callable[[Atoms], tuple[Predict, dict[str, float]]], str]] = {
    "ours": ("ours (evidence BLL)", ours, "numpy"),
    "ours-isotropic": ("ours, isotropic prior", ours_isotropic, "numpy"),
    "laplace-full": ("laplace-torch, full", laplace_full, "laplace"),
    "laplace-kron": ("laplace-torch, Kronecker", laplace_kron, "laplace"),
    "bayesian-ridge": ("BayesianRidge x 3", bayesian_ridge, "sklearn.linear_model"),
    "ard": ("ARDRegression x 3", ard_regression, "sklearn.linear_model"),
    "llpr": ("LLPR, one scalar", llpr, "scipy.linalg"),
}


def fit_one(name: str, folder: Path) -> dict[str, float]:
    """Fit in this process, whose libraries are loaded before anything is counted."""
    atoms = Atoms(folder)
    _, fit, library = METHODS[name]
    __import__(library)
    __import__("forceuq.bll.posterior")
    np.linalg.cholesky(np.eye(WIDTH) + np.ones((WIDTH, WIDTH)) @ np.ones((WIDTH, WIDTH)))  # starts BLAS
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    predict, facts = fit(atoms)
    seconds = time.process_time() - began
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    phi, y = atoms.held_out("test")
    return {**facts, "seconds": seconds, "bytes": memory, "nll": negative_log_likelihood(y, predict(phi))}


def in_a_process(arguments: list[str], seconds: float) -> dict[str, float] | str:
    """Return what a process of one thread prints, or what it ran out of."""

    def limit() -> None:
        # The time is the processor's, and a little for loading libraries and predicting; the memory, the process's own.
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 20, int(seconds) + 25))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))

    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, *arguments],
        env={**os.environ, **threads},
        capture_output=True,
        text=True,
        preexec_fn=limit,
        check=False,
    )
    if done.returncode == -signal.SIGXCPU:
        return f"> {seconds:.0f} s"
    if done.returncode:
        if "MemoryError" in done.stderr or "not enough memory" in done.stderr:
            return f"> {MEMORY / 2**30:.0f} GiB"
        raise SystemExit(f"{' '.join(arguments)}: {done.returncode}\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found if found.get("seconds", 0.0) <= seconds else f"> {seconds:.0f} s"


def report(sizes: list[int], names: list[str], noise: str, seconds: float) -> None:
    covariance = noise_covariance(noise)
    best = 0.5 * (TARGETS * np.log(2.0 * np.pi * np.e) + np.linalg.slogdet(covariance)[1])
    print(f"{WIDTH} features, {TARGETS} targets, {noise} noise, one thread each, processor time")
    print(f"NLL of the true weights and noise: {best:.4f} nats an atom")
    for n in sizes:
        with tempfile.TemporaryDirectory() as folder:
            in_a_process(["--generate", folder, "--atoms", str(n), "--noise", noise], 1800)
            print(f"\n{n} atoms {'s':>21} {'of it pass':>11} {'/ ours':>7} {'MB on top':>10} {'test NLL':>9}", end="")
            print(f" {'steps':>6} {'slope left':>11}")
            own = float("nan")
            for name in names:
                row = in_a_process(["--fit", folder, "--only", name], seconds)
                if isinstance(row, str):
                    print(f"{METHODS[name][0]:25} {row:>8}", flush=True)
                    continue
                own = row["seconds"] if name == "ours" else own
                print(
                    f"{METHODS[name][0]:25} {row['seconds']:8.2f} {row['pass']:11.2f} {row['seconds'] / own:7.1f}"
                    f" {row['bytes'] / 1e6:10.0f} {row['nll']:9.4f} {row['steps']:6.0f} {row['slope']:11.1e}",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--atoms", type=int, nargs="+", default=[20_000, 100_000, 1_000_000])
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--noise", choices=("correlated", "isotropic"), default="correlated")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds of processor time a fit may take")
    parser.add_argument("--generate", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--fit", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.generate:
        generate(given.generate, given.atoms[0], given.noise)
        print("{}")
    elif given.fit:
        print(json.dumps(fit_one(given.only[0], given.fit)))
    else:
        report(given.atoms, given.only, given.noise, given.limit)


if __name__ == "__main__":
    main()
