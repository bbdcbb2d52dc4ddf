"""Preconditioned conjugate gradients for several right-hand sides, each until it is finished. Imports torch."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forceuq.gp.preconditioner import Preconditioner


@dataclass
class Run:
    """What conjugate gradients did for right-hand sides (n, T)."""

    solution: Tensor | None
    norms: Tensor
    forms: Tensor
    iterations: int
    alphas: list[NDArray[np.float64]]
    betas: list[NDArray[np.float64]]


def iterate(
    multiply: Callable[[Tensor], Tensor],
    preconditioner: Preconditioner,
    sides: Tensor,
    finished: Callable[[Tensor, Tensor, Tensor], Tensor],
    max_iterations: int,
    *,
    solution: bool,
) -> Run:
    """Iterate from zero until every column is finished, of which the caller judges, or the iterations are used up.

    Args:
        multiply: product with the matrix.
        preconditioner: of it.
        sides: (n, T) right-hand sides.
        finished: of residuals' norms, b^T x so far and columns' numbers.
        max_iterations: that.
        solution: whether the solution is kept.
    """
    count = sides.shape[1]
    x = torch.zeros_like(sides) if solution else None
    norms, forms = sides.norm(dim=0), torch.zeros(count, dtype=torch.float64, device=sides.device)
    active = torch.arange(count, device=sides.device)
    alphas: list[NDArray[np.float64]] = []
    betas: list[NDArray[np.float64]] = []
    keep = ~finished(norms, forms, active)
    active = active[keep]
    r = sides[:, active]
    z = preconditioner.power(-1.0, r)
    p, rz = z, (r * z).sum(0)
    while len(active) and len(alphas) < max_iterations:
        product_p = multiply(p)
        alpha = rz / (p * product_p).sum(0)
        if not bool(((alpha > 0) & torch.isfinite(alpha)).all()):
            break
        if x is not None:
            x[:, active] += alpha * p
        r = r - alpha * product_p
        del product_p
        z = preconditioner.power(-1.0, r)
        following = (r * z).sum(0)
        norms[active] = r.norm(dim=0)
        # b^T x grows by this in each step, also in finite precision (Strakos & Tichy 2002, ETNA 13, 56-80).
        forms[active] += alpha * rz
        beta = following / rz
        for steps, values in ((alphas, alpha), (betas, beta)):
            steps.append(np.full(count, np.nan))
            steps[-1][active.cpu().numpy()] = values.cpu().numpy()
        keep = ~finished(norms[active], forms[active], active)
        if bool(keep.all()):
            p, rz = torch.addcmul(z, beta, p), following
        else:
            p, rz = torch.addcmul(z[:, keep], beta[keep], p[:, keep]), following[keep]
            active, r = active[keep], r[:, keep]
    return Run(x, norms, forms, len(alphas), alphas, betas)
