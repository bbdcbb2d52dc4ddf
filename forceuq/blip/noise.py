"""Standard normal numbers that belong to a structure, whatever it is predicted together with. Imports torch."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from forceuq.blip.variational import Rows


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


def fresh_noise(rows: Rows, like: Tensor) -> Tensor:
    """Return numbers of torch's global generator, which training seeds by seed and epoch."""
    del rows
    return torch.randn_like(like)


def _key(seed: int, structure_id: str, index: int) -> int:
    digest = hashlib.sha256(json.dumps([seed, structure_id, index]).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
