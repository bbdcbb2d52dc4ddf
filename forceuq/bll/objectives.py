"""What a projection is trained on: the minibatch evidence (the paper's), or the force error.

Imports torch.
"""

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forceuq.errors import FitError


class Objective(Protocol):
    """A loss of features and targets, with parameters of its own."""

    def parameters(self) -> dict[str, Tensor]:
        """Return the tensors to train beside the projection."""

    def __call__(self, phi: Tensor, y: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the loss a target of features (n, D) float32 and targets (n, K) float64.

        Args:
            phi: features.
            y: targets.
            real: (n, 1) bool, the rows that count, for a batch that was filled up to a size; None: all. Nothing is
                checked then: a loss that cannot be computed is not finite.
        """


def mean_square(residual: Tensor, real: Tensor | None = None) -> Tensor:
    """Return the mean square of residuals (n, K), of the rows that are ``real`` (n, 1)."""
    if real is None:
        return torch.mean(residual**2)
    return (residual**2 * real).sum() / (real.sum() * residual.shape[1])


class _Evidence(torch.autograd.Function):
    """Eq. (7) of one batch, in double precision, with its gradient written out.

    With ``R = Y - Phi B_n`` and ``Q = Lambda_n^-1 Phi^T``, B_n being stationary:

        dL/dPhi = K Q^T - R Sigma_e^-1 B_n^T
        dL/dlog lambda_d = (lambda_d (B_n Sigma_e^-1 B_n^T)_dd - K gamma_d) / 2,  gamma_d = (Q Phi)_dd
        dL/dSigma_e = (N Sigma_e^-1 - Sigma_e^-1 (R^T R + B_n^T Lambda_0 B_n) Sigma_e^-1) / 2
    """

    @staticmethod
    def forward(ctx: Any, phi: Tensor, y: Tensor, log_precision: Tensor, noise: Tensor, atoms: Tensor | None) -> Tensor:
        k = y.shape[1]
        n: Any = len(y) if atoms is None else atoms
        x = phi.double()
        gram = x.T @ x
        precision = log_precision.exp()
        scale = (gram.diagonal() + precision).sqrt()
        scaled = gram / scale[:, None] / scale
        scaled.fill_diagonal_(1.0)
        if atoms is None:
            factor, failed = torch.linalg.cholesky(scaled), None
        else:
            factor, failed = torch.linalg.cholesky_ex(scaled)
        solved = torch.cholesky_solve((x / scale).T, factor) / scale[:, None]  # Q (D, n)
        mean = solved @ y
        residual = y - x @ mean
        scatter = residual.T @ residual + mean.T @ (precision[:, None] * mean)
        lower = torch.tril(noise, -1) + torch.diag(noise.diagonal().exp())
        noise_inverse = torch.cholesky_inverse(lower)
        log_det = 2.0 * factor.diagonal().log().sum() + torch.log1p(gram.diagonal() / precision).sum()
        value: Tensor = (
            0.5 * n * k * np.log(2.0 * np.pi)
            + n * noise.diagonal().sum()
            + 0.5 * k * log_det
            + 0.5 * (noise_inverse * scatter).sum()
        )
        if failed is not None:
            value = torch.where(failed == 0, value, torch.nan)
        weighted = mean @ noise_inverse  # B_n Sigma_e^-1 (D, K)
        gamma = (solved * x.T).sum(1)
        by_noise = torch.tril((n * noise_inverse - noise_inverse @ scatter @ noise_inverse) @ lower)
        by_noise.diagonal().mul_(lower.diagonal())
        ctx.save_for_backward(
            (k * solved.T - residual @ weighted.T).to(phi.dtype),
            0.5 * (precision * (mean * weighted).sum(1) - k * gamma),
            by_noise,
        )
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        by_phi, by_precision, by_noise = ctx.saved_tensors
        (scale,) = grad_outputs
        return (scale * by_phi).to(by_phi.dtype), None, scale * by_precision, scale * by_noise, None


def batch_nlml(phi: Tensor, y: Tensor, log_precision: Tensor, noise: Tensor, atoms: Tensor | None = None) -> Tensor:
    """Return eq. (7) of a batch, in nats; differentiable by everything but ``y``.

    Args:
        phi: (n, D) features.
        y: (n, K) float64 targets.
        log_precision: (D,) float64 log lambda.
        noise: (K, K) float64 parameters of Sigma_e as ``evidence.noise_covariance`` takes them.
        atoms: () float64, how many rows count where the others are zero in ``phi`` and ``y``; None: all.

    Raises:
        LinAlgError: Lambda_n is not positive definite; with ``atoms`` the value is then not a number.
    """
    value: Tensor = _Evidence.apply(phi, y, log_precision, noise, atoms)  # type: ignore[no-untyped-call]
    return value


class EvidenceObjective:
    """The paper's: the batch's own NLML an atom, Lambda_0 and Sigma_e learned, both from the identity."""

    def __init__(self, width: int, targets: int, device: str) -> None:
        self.log_precision = torch.zeros(width, dtype=torch.float64, device=device, requires_grad=True)
        self.noise = torch.zeros((targets, targets), dtype=torch.float64, device=device, requires_grad=True)

    def parameters(self) -> dict[str, Tensor]:
        """Return log lambda (D,) and the parameters of Sigma_e (K, K)."""
        return {"log_precision": self.log_precision, "noise": self.noise}

    def __call__(self, phi: Tensor, y: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the NLML divided by the number of atoms."""
        if real is not None:
            atoms = real.sum().double()
            return batch_nlml(phi * real, y * real, self.log_precision, self.noise, atoms) / atoms
        try:
            return batch_nlml(phi, y, self.log_precision, self.noise) / len(y)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise FitError(f"Lambda_n of the batch is not positive definite ({error})") from error


class ErrorObjective:
    """Mean squared error of a linear layer without bias, as the Bayesian model has none."""

    def __init__(self, weight: NDArray[Any], device: str) -> None:
        self.weight = torch.tensor(weight, dtype=torch.float32, device=device, requires_grad=True)

    def parameters(self) -> dict[str, Tensor]:
        """Return the layer's weight (K, D)."""
        return {"out": self.weight}

    def __call__(self, phi: Tensor, y: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the mean squared error a component, (eV/Å)²."""
        return mean_square(phi @ self.weight.T - y.float(), real)
