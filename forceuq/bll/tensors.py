"""Reading the safetensors files of fits."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from forceuq.errors import DataError


def load_tensors(path: str | Path, schema: str, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Return the arrays of a safetensors file whose header's ``forceuq`` entry is ``schema``.

    That is its only header entry: safetensors writes several in no fixed order, and files are to be the same
    bytes for the same content.

    Raises:
        DataError: the file is missing, damaged, of another schema or lacks one of ``names``.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            found = (file.metadata() or {}).get("forceuq")
            arrays = {name: np.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"cannot be read ({error}): remove it and make it again", file=path) from error
    if found != schema or not set(names) <= set(arrays):
        raise DataError(f"holds {found!r} with {sorted(arrays)}, expected {schema!r}", file=path)
    return arrays
