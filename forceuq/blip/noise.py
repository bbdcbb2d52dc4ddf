"""Standard normal numbers that belong to a structure, whatever it is predicted together with. Imports torch."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from forceuq.blip.variational import Rows
from forceuq.finetuning.frames import Share


class StructureNoise:
    """The noise of one pass over a batch: each structure draws its own, from a generator of its own.

    A structure's numbers depend on the seed, its id and the pass only, and on the sizes of the layers before; so
    neither its neighbours in a batch nor their number change them.

    Args:
        ids: of the structures in the batch.
        sizes: atoms and edges of each, in the same order.
        seed: of the fit.
        index: of the pass.
        device: where the numbers are drawn. Each device has its own.
    """

    def __init__(
        self, ids: Sequence[str], sizes: Mapping[Rows, list[int]], seed: int, index: int, device: str | torch.device
    ) -> None:
        self._sizes = sizes
        self._generators = [torch.Generator(device).manual_seed(_key(seed, name, index)) for name in ids]

    def __call__(self, rows: Rows, like: Tensor) -> Tensor:
        """Return standard normal numbers of a tensor's shape, (rows, out)."""
        numbers = torch.empty_like(like)
        parts: tuple[Tensor, ...] = torch.split(numbers, self._sizes[rows])
        for part, generator in zip(parts, self._generators, strict=True):
            part.normal_(generator=generator)
        return numbers


class SharedNoise:
    """One process's rows of the numbers that torch's global generator gives for a whole batch.

    Every process draws the numbers of all structures, in the order of the batch, and keeps its own: so they are the
    same whatever the number of processes, and all generators stay in step.

    Args:
        share: of the batch.
    """

    def __init__(self, share: Share) -> None:
        self._sizes: dict[Rows, tuple[int, ...]] = {"nodes": share.atoms, "edges": share.edges}
        self._mine = share.mine

    def __call__(self, rows: Rows, like: Tensor) -> Tensor:
        """Return standard normal numbers of a tensor's shape, (rows, out)."""
        sizes = self._sizes[rows]
        numbers = torch.randn(sum(sizes), *like.shape[1:], dtype=like.dtype, device=like.device)
        parts: tuple[Tensor, ...] = torch.split(numbers, list(sizes))
        return torch.cat([parts[i] for i in self._mine])


def training_noise(share: Share | None) -> Callable[[Rows, Tensor], Tensor]:
    """Return what draws a training batch's noise from torch's global generator."""
    return fresh_noise if share is None else SharedNoise(share)


def fresh_noise(rows: Rows, like: Tensor) -> Tensor:
    """Return numbers of torch's global generator, which training seeds by seed and epoch."""
    del rows
    return torch.randn_like(like)


def _key(seed: int, structure_id: str, index: int) -> int:
    digest = hashlib.sha256(json.dumps([seed, structure_id, index]).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
