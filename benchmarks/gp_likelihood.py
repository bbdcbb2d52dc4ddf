"""Seconds of one evaluation of the exact GP's marginal likelihood with its gradient, and of predictions.

    python benchmarks/gp_likelihood.py [atoms] [features]

Beside what the same operations cost at dgemm's speed, measured in the same run: an evaluation factorises the kernel
matrix and inverts it (n³ operations), a prediction is a triangular solve (n² for an atom). Then the same by conjugate
gradients, in the kernel that Cholesky predicted with; alone, where the memory does not do for Cholesky. All in float64.
"""

import os
import resource
import sys
import time
from collections.abc import Callable

import torch

from forceuq.gp import iterative
from forceuq.gp.exact import factorise, needed_bytes, nlml, predict
from forceuq.gp.kernels import Hyperparameters
from forceuq.gp.preconditioner import choose_pivots, precondition

AT = Hyperparameters(lengthscale=8.0, outputscale=1.0, noise=0.05)
PREDICTED = 4096
SETTINGS = iterative.Settings(rank=500, tolerance=1e-6, max_iterations=2000, probes=16)


def seconds(action: Callable[[], object], repeats: int = 1) -> float:
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - began)
    return best


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def by_iterations(x: torch.Tensor, y: torch.Tensor, at: torch.Tensor) -> None:
    likelihood = iterative.ProbedLikelihood("rbf", x, y, AT, SETTINGS, 0)
    began = time.perf_counter()
    estimate = likelihood.estimate(AT)
    print(
        f"cg, rbf   likelihood + gradient {time.perf_counter() - began:7.1f} s ({estimate.iterations} iterations,"
        f" value to {estimate.value_error / abs(estimate.value):.1e} of itself)"
    )
    conditioner, _ = precondition("rbf", x, AT, choose_pivots("rbf", x, AT, SETTINGS.rank))
    solved = []
    took = seconds(lambda: solved.append(iterative.solve("rbf", x, conditioner, y, AT, SETTINGS)))
    print(f"cg, rbf   solution              {took:7.1f} s ({solved[0].iterations} iterations)")
    few = at[: iterative.batch_atoms(len(x))]
    took = seconds(lambda: iterative.predict("rbf", x, conditioner, solved[0].x, few, AT, SETTINGS))
    print(f"cg, prediction, 1000 atoms   {1000 * took / len(few):7.2f} s")
    allowed = iterative.needed_bytes(len(x), x.shape[1], SETTINGS) / 2**30
    print(f"cg, allowed for              {allowed:7.2f} GiB")


def main() -> None:
    atoms, width = (int(value) for value in [*sys.argv[1:], *["9000", "256"][len(sys.argv) - 1 :]])
    torch.manual_seed(0)
    x = torch.randn(atoms, width, dtype=torch.float64)
    y = torch.randn(atoms, 3, dtype=torch.float64)
    at = torch.randn(PREDICTED, width, dtype=torch.float64)
    square = torch.randn(2048, 2048, dtype=torch.float64)
    rate = 2 * 2048**3 / seconds(lambda: square @ square, 5)
    print(f"{atoms} atoms, {width} features, {torch.get_num_threads()} threads, dgemm {rate / 1e9:.0f} GFLOP/s")
    wanted, there = needed_bytes(atoms) / 2**30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    if wanted > there:
        print(f"Cholesky would take {wanted:.1f} GiB, the machine has {there:.1f}")
        by_iterations(x, y, at[:64])
        print(f"cg, peak memory              {peak():7.2f} GiB")
        return
    for kernel in ("rbf", "matern52"):
        value = seconds(lambda kernel=kernel: nlml(kernel, x, y, AT))
        print(f"{kernel:9s} likelihood + gradient {value:7.1f} s ({value * rate / atoms**3:.1f} x n³ at dgemm's speed)")
    factor = factorise("rbf", x, AT)
    alpha = torch.cholesky_solve(y, factor)
    predicting = seconds(lambda: predict("rbf", x, factor, alpha, at, AT))
    bare = PREDICTED * atoms**2 / rate
    print(f"prediction, 1000 atoms       {1000 * predicting / PREDICTED:7.2f} s ({predicting / bare:.1f} x n² an atom)")
    print(f"peak memory                  {peak():7.2f} GiB (allowed for: {wanted:.2f})")
    by_iterations(x, y, at)


if __name__ == "__main__":
    main()
