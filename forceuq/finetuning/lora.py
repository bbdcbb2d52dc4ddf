"""Low-rank adapters: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.

Our own rather than ``peft``'s (0.21): that would bring transformers, tokenizers and accelerate along for the few
lines below.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class LoRALinear(nn.Module):
    """A frozen linear layer plus a low-rank change: W x + b + (alpha / r) B A x.

    A (r, in) is uniform as torch's linear layers are (Kaiming, a = sqrt 5), B (out, r) zero: at first nothing
    changes (the paper's section 4.1).
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = alpha / rank
        bound = 1.0 / math.sqrt(base.in_features)
        # On the CPU first, so that a seed means the same on every device.
        a = torch.rand(rank, base.in_features, generator=generator) * (2 * bound) - bound
        self.lora_a = nn.Parameter(a.to(base.weight))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank).to(base.weight))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out)."""
        low: Tensor = nn.functional.linear(nn.functional.linear(x, self.lora_a), self.lora_b)
        return self.base(x) + self.scale * low  # type: ignore[no-any-return]

    def merged(self) -> nn.Linear:
        """Return the base layer with the change added to its weight, in place."""
        with torch.no_grad():
            change = self.lora_b.double() @ self.lora_a.double()
            self.base.weight.copy_(self.base.weight.double() + self.scale * change)
        return self.base


def inject(mlps: Mapping[str, nn.Module], rank: int, alpha: float, seed: int) -> dict[str, nn.Parameter]:
    """Put adapters into every linear layer of some modules, in place, and return their matrices by name."""
    generator = torch.Generator().manual_seed(seed)
    parameters: dict[str, nn.Parameter] = {}
    for prefix, mlp in mlps.items():
        layers = [(name, layer) for name, layer in mlp.named_modules() if isinstance(layer, nn.Linear)]
        for name, layer in layers:
            adapter = LoRALinear(layer, rank, alpha, generator)
            parent, _, child = name.rpartition(".")
            setattr(mlp.get_submodule(parent), child, adapter)
            parameters[f"{prefix}.{name}.lora_a"] = adapter.lora_a
            parameters[f"{prefix}.{name}.lora_b"] = adapter.lora_b
    return parameters


def merge(module: nn.Module) -> None:
    """Replace every adapter inside a module by a linear layer with its change in the weight, in place."""
    for name, adapter in [(n, m) for n, m in module.named_modules() if isinstance(m, LoRALinear)]:
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, adapter.merged())
