"""The hidden layers of a force head as tensors that can be trained. Imports torch."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from forceuq.backbones.head import ForceHead
from forceuq.bll.batches import Standardisation
from forceuq.errors import FitError

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.nn.functional.silu,
    "ssp": lambda x: torch.nn.functional.softplus(x) - math.log(2.0),
    "relu": torch.nn.functional.relu,
    "tanh": torch.tanh,
}


class Projection:
    """The hidden layers, acting on standardised node features.

    Args:
        head: the layers; its last, linear one has no part in this.
        standardisation: of the node features.
        fold: the layers act on features as cached, and the first is to be adjusted to standardised ones; False
            where they are to be taken as they are (fresh ones).
        device: torch's name of where the tensors lie.

    Raises:
        FitError: an activation that is not known.
    """

    def __init__(self, head: ForceHead, standardisation: Standardisation, fold: bool, device: str) -> None:
        if head.activation not in _ACTIVATIONS:
            raise FitError(f"the head's activation {head.activation!r} is not one of {sorted(_ACTIVATIONS)}")
        self._head = head
        self._standardisation = standardisation
        self._activation = _ACTIVATIONS[head.activation]
        self.layers: list[tuple[Tensor, Tensor]] = []
        for index, (weight, bias) in enumerate(head.weights):
            w, b = np.asarray(weight, dtype=np.float64), np.asarray(bias, dtype=np.float64)
            if index == 0 and fold:
                # W x + b = (W diag(std)) ((x - mean) / std) + (b + W mean)
                w, b = w * standardisation.std, b + w @ standardisation.mean
            self.layers.append(
                tuple(  # type: ignore[arg-type]
                    torch.tensor(a, dtype=torch.float32, device=device, requires_grad=True) for a in (w, b)
                )
            )

    def parameters(self) -> dict[str, Tensor]:
        """Return the weights (out, in) and biases (out,) by name."""
        return {
            f"layer{index}.{name}": tensor
            for index, layer in enumerate(self.layers)
            for name, tensor in zip(("weight", "bias"), layer, strict=True)
        }

    def __call__(self, x: Tensor) -> Tensor:
        """Return the last hidden layer's output (n, D) of standardised features (n, node_dim)."""
        for weight, bias in self.layers:
            x = self._activation(torch.nn.functional.linear(x, weight, bias))
        return x

    def head(self) -> ForceHead:
        """Return the head with these layers, the standardisation folded back."""
        weights = []
        for index, layer in enumerate(self.layers):
            w, b = (tensor.detach().cpu().numpy().astype(np.float64) for tensor in layer)
            if index == 0:
                w = w / self._standardisation.std
                b = b - w @ self._standardisation.mean
            weights.append((w.astype(np.float32), b.astype(np.float32)))
        return replace(self._head, weights=tuple(weights))
