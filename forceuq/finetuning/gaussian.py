"""A backbone with a variance head beside its force head, and its negative log-likelihood. Imports torch."""

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from forceuq.backbones import TrainableBackbone
from forceuq.finetuning.frames import Batch

VarianceStart = Literal["zero", "zero-last"]


def _last_linear(mlp: nn.Module) -> nn.Linear:
    return [layer for layer in mlp.modules() if isinstance(layer, nn.Linear)][-1]


def renew_last_projection(mlp: nn.Module, seed: int) -> None:
    """Draw a head's last linear layer anew, uniform within 1 / sqrt(inputs) as torch does, in place."""
    last = _last_linear(mlp)
    generator = torch.Generator().manual_seed(seed)
    bound = 1.0 / math.sqrt(last.in_features)
    with torch.no_grad():
        for tensor in (last.weight, last.bias):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * (2 * bound) - bound)


def variance_mlp(force_mlp: nn.Module, start: VarianceStart) -> nn.Module:
    """Return an MLP like the force head's, whose output, three log-variances, is zero at first.

    Args:
        force_mlp: the force head's.
        start: ``zero``: all weights and biases are zero (Appendix B). Then, as the activation of zero is zero
            (SiLU, shifted softplus), no gradient ever reaches anything but the last bias: such a head learns
            one variance for each component, the same for all atoms. ``zero-last``: only the last layer is
            zero, the others are the force head's own; the first variance is one all the same, and the
            variance can come to depend on the atom.
    """
    mlp = copy.deepcopy(force_mlp)
    with torch.no_grad():
        for parameter in (_last_linear(mlp) if start == "zero-last" else mlp).parameters():
            parameter.zero_()
    return mlp


class GaussianForces(nn.Module):
    """Predicts a Gaussian for each component of each atom's force.

    Log-variances are of the force as the force head normalises it: a variance of one is the backbone's
    ``force_scale`` squared, so that a new head starts at the scale of the data in whatever units.
    """

    def __init__(self, backbone: TrainableBackbone, start: VarianceStart) -> None:
        super().__init__()
        self.model = backbone.model
        self.variance = variance_mlp(backbone.force_mlp()[1], start)
        self._backbone = backbone

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return force (n, 3), eV/Å, before ZBL, and log-variance (n, 3), normalised."""
        features = self._backbone.node_features(batch).float()
        # The heads cost little, and what follows them (net force, net torque) is float32's: no autocast here.
        with torch.autocast(features.device.type, enabled=False):
            return self._backbone.head_forces(features, batch), self.variance(features)

    def nll(self, batch: Batch) -> Tensor:
        """Return the mean over atoms and components of the negative log-likelihood, normalised units.

        Of a shared batch: this process's part of that mean.
        """
        force, log_variance = self(batch.graph)
        error = (force - batch.target.to(force)) / self._backbone.force_scale
        squares = error.square() * torch.exp(-log_variance)
        nll: Tensor = 0.5 * (log_variance + squares + math.log(2 * math.pi)).mean() * batch.of_atoms
        return nll
