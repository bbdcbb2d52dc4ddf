"""Graphs to a GPU and results back, without waiting. Imports torch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return a value with each tensor in it changed: in dictionaries, lists, tuples, named tuples, dataclasses."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: map_tensors(change, each) for key, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(change, each) for each in value))
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(change, each) for each in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {
            field.name: map_tensors(change, getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init
        }
        return dataclasses.replace(value, **changed)
    return value


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors in a value, as ``map_tensors`` finds them."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(note, value)
    return found


def to_device(graph: Any, device: str) -> Any:
    """Return a graph whose tensors are on a device; to a GPU from pinned memory, while the host goes on."""
    if torch.device(device).type != "cuda":
        return graph
    return map_tensors(lambda tensor: tensor.pin_memory().to(device, non_blocking=True), graph)


class Arriving:
    """Tensors on their way to the host.

    Args:
        tensors: on any device; of those on a GPU the copy starts at once and the host goes on.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if not any(tensor.is_cuda for tensor in tensors):
            self._tensors = tensors
            return
        self._tensors = tuple(
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
            for tensor in tensors
        )
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def wait(self) -> tuple[Tensor, ...]:
        """Return the tensors on the host, once they are there."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensors
