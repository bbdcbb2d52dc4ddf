"""A backbone's force head apart from the backbone: the layers after the node features, in NumPy."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forceuq.errors import DataError
from forceuq.files import whole_file

VERSION = 1
_ROWS = 8192


@dataclass(frozen=True, eq=False)
class ForceHead:
    """Layers from node features to forces; D is the width of the last hidden layer.

    Args:
        weights: (W (out, in), b (out,)) of each hidden layer, float32.
        activation: name of the activation after each hidden layer.
        out_weight: (3, D), the last linear layer.
        out_bias: (3,).
        mean: (1,) mean of the normaliser: force = output * std + mean, eV/Å.
        std: (1,) its standard deviation, eV/Å.
        remove_mean: whether the model takes the net force away from the output.
        remove_torque: whether it takes the net torque away in structures that are not periodic.
    """

    weights: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]
    activation: str
    out_weight: NDArray[np.float32]
    out_bias: NDArray[np.float32]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    remove_mean: bool
    remove_torque: bool

    def penultimate(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the last hidden layer's output, (n, D) float32, for node features (n, node_dim)."""
        out = np.empty((len(x), len(self.weights[-1][1])), dtype=np.float32)
        for start in range(0, len(x), _ROWS):
            h = np.asarray(x[start : start + _ROWS], dtype=np.float32)
            for weight, bias in self.weights:
                h = _activate(h @ weight.T + bias, self.activation)
            out[start : start + _ROWS] = h
        return out

    def forces(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the head's own forces, (n, 3) eV/Å, for node features (n, node_dim).

        As the layers give them: neither net force nor net torque is removed, nothing is added after the head.
        """
        raw = self.penultimate(x).astype(np.float64) @ self.out_weight.T.astype(np.float64) + self.out_bias
        forces: NDArray[np.float64] = raw * self.std + self.mean
        return forces

    def save(self, path: str | Path) -> None:
        """Write the head as safetensors."""
        from safetensors.numpy import save_file

        tensors = {"out_weight": self.out_weight, "out_bias": self.out_bias, "mean": self.mean, "std": self.std}
        for index, (weight, bias) in enumerate(self.weights):
            tensors |= {f"hidden.{index}.weight": weight, f"hidden.{index}.bias": bias}
        facts = {
            "schema": "force-head",
            "version": VERSION,
            "layers": len(self.weights),
            "activation": self.activation,
            "remove_mean": self.remove_mean,
            "remove_torque": self.remove_torque,
        }
        with whole_file(path) as temporary:
            save_file(
                {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in tensors.items()},
                temporary,
                metadata={"forceuq": json.dumps(facts, sort_keys=True)},
            )

    @classmethod
    def load(cls, path: str | Path) -> "ForceHead":
        """Read what ``save`` wrote.

        Raises:
            DataError: the file is missing, damaged or of another schema.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                facts = json.loads((file.metadata() or {}).get("forceuq", "{}"))
                if (facts.get("schema"), facts.get("version")) != ("force-head", VERSION):
                    raise DataError(f"is not of schema 'force-head' version {VERSION}; make it again", file=path)
                hidden = tuple(
                    (file.get_tensor(f"hidden.{i}.weight"), file.get_tensor(f"hidden.{i}.bias"))
                    for i in range(facts["layers"])
                )
                return cls(
                    hidden,
                    facts["activation"],
                    out_weight=file.get_tensor("out_weight"),
                    out_bias=file.get_tensor("out_bias"),
                    mean=file.get_tensor("mean"),
                    std=file.get_tensor("std"),
                    remove_mean=facts["remove_mean"],
                    remove_torque=facts["remove_torque"],
                )
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise DataError(f"not a force head's file ({error}); make it again", file=path) from error


def _activate(x: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    if name == "silu":
        # tanh does not overflow where exp would.
        silu: NDArray[np.float32] = x * (0.5 + 0.5 * np.tanh(0.5 * x))
        return silu
    if name == "ssp":
        result: NDArray[np.float32] = np.logaddexp(np.float32(0), x) - np.float32(np.log(2.0))
        return result
    if name == "relu":
        relu: NDArray[np.float32] = np.maximum(x, np.float32(0))
        return relu
    if name == "tanh":
        tanh: NDArray[np.float32] = np.tanh(x)
        return tanh
    raise DataError(f"the force head's activation {name!r} is not known (silu, ssp, relu, tanh)")
