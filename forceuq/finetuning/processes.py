"""The processes of one node that train together, through Lightning Fabric. Imports torch.

Fabric is imported where training begins: it takes seconds, and predictions do without it.
"""

import contextlib
import os
import resource
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from forceuq.errors import FitError
from forceuq.finetuning.frames import Batch

Precision = Literal[32, "bf16-mixed"]


def launched() -> bool:
    """Return whether torchrun, or what it is made of, started this process."""
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    return bool(TorchElasticEnvironment.detect())


class Processes:
    """The processes that train together, seen from one of them: each runs the same program on its part of each batch.

    There is only one, unless torchrun started this process.

    Args:
        device: ``cpu`` or ``cuda``, where each process has a GPU of its own.
        precision: of the matrix products in training; ``bf16-mixed``: of bfloat16 numbers, where autocast thinks it
            safe; parameters, gradients' sums and losses stay in float32.
    """

    def __init__(self, device: str, precision: Precision = 32) -> None:
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments.lightning import LightningEnvironment
        from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

        shared = launched()
        self.count = int(os.environ["WORLD_SIZE"]) if shared else 1
        # The environment is named, not guessed: in a Slurm job Fabric would take srun's for its own.
        environment = TorchElasticEnvironment() if shared else LightningEnvironment()
        self.fabric = Fabric(
            accelerator=device,
            devices=self.count,
            strategy="ddp" if self.count > 1 else "auto",
            precision="bf16-mixed" if precision == "bf16-mixed" else "32-true",
            plugins=[environment],
        )
        self.fabric.launch()
        self.rank = int(self.fabric.global_rank)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and tells of progress."""
        return self.rank == 0

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which matrix products have the training's precision."""
        context: contextlib.AbstractContextManager[Any] = self.fabric.autocast()
        return context

    def total(self, value: float) -> float:
        """Return the sum of a number over the processes."""
        return float(self.sums(np.array([value]))[0])

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sums of some numbers over the processes."""
        if self.count == 1:
            return values
        found: NDArray[np.float64] = self._sum(torch.from_numpy(values)).cpu().numpy()
        return found

    def told(self, batch: Batch) -> Batch:
        """Return a batch whose share knows the edges of all its structures."""
        if batch.share is None:
            return batch
        edges = torch.zeros(len(batch.share.structure_ids), dtype=torch.int64)
        if batch.share.counted:
            edges[list(batch.share.mine)] = batch.graph.n_edge.to(edges)
        return replace(batch, share=replace(batch.share, edges=tuple(self._sum(edges).tolist())))

    def backward(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        """Leave in the parameters the gradient of the processes' losses' sum.

        A parameter that no process's loss depends on has no gradient then, as in one process.
        """
        self.fabric.backward(loss)
        if self.count == 1:
            return
        # One sum over everything, in place of DistributedDataParallel's mean in buckets: the shares' losses are parts
        # of the batch's, and a share may leave parameters out (one without edges sends no messages).
        with torch.no_grad():
            found = [parameter.grad is not None for parameter in parameters]
            parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            flat = torch.cat([part.reshape(-1) for part in parts] + [parts[0].new_tensor(found)])
            *sums, count = torch.split(self._sum(flat), [*(part.numel() for part in parts), len(parts)])
            for parameter, gradient, any_has in zip(parameters, sums, count.tolist(), strict=True):
                parameter.grad = gradient.view_as(parameter).clone() if any_has else None

    def must_agree(self, tensors: Iterable[Tensor], what: str) -> None:
        """Make sure that all processes have the same bits of float32 tensors.

        Raises:
            FitError: they have not.
        """
        if self.count == 1:
            return
        bits = torch.stack([tensor.detach().view(torch.int32).long().sum() for tensor in tensors])
        if not torch.equal(self._reduced(bits.clone(), "min"), self._reduced(bits, "max")):
            raise FitError(f"the {self.count} processes no longer have the same {what}: this is a mistake in forceuq")

    def usage(self) -> dict[str, Any]:
        """Return what a report says of the processes: how many, on which device, with what peak memory in bytes."""
        cuda = self.fabric.device.type == "cuda"
        # Linux counts kibibytes, macOS bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        peaks = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit]
        if cuda:
            peaks.append(torch.cuda.max_memory_allocated())
        if self.count > 1:
            peaks = self._reduced(torch.tensor(peaks), "max").tolist()
        return {
            "count": self.count,
            "gpu": torch.cuda.get_device_name() if cuda else None,
            "peak_memory_bytes": peaks[0],
            "peak_gpu_memory_bytes": peaks[1] if cuda else None,
        }

    def _sum(self, tensor: Tensor) -> Tensor:
        return self._reduced(tensor, "sum")

    def _reduced(self, tensor: Tensor, operation: str) -> Tensor:
        found: Any = self.fabric.all_reduce(tensor.to(self.fabric.device), reduce_op=operation)
        return found  # type: ignore[no-any-return]
