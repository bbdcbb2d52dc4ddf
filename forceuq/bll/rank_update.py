"""The symmetric product X^T X of rows, added to what is there, by BLAS.

NumPy has no interface to the routine that adds, and SciPy's keeps other threads waiting. This calls the ``dsyrk`` that
SciPy offers to compiled code, where it is as known here, and NumPy's product where it is not.
"""

import ctypes
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cython_blas

# char, int and double by reference, as Fortran has them.
_SIGNATURE = "void (char *, char *, int *, int *, d *, d *, int *, d *, d *, int *)"


def add_product(total: NDArray[np.float64], rows: NDArray[np.float64]) -> None:
    """Add X^T X to the lower triangle of ``total``, while other threads of this process go on.

    Args:
        total: (m, m), its rows contiguous; what is above the diagonal is left as it is.
        rows: X, (n, m), its rows contiguous.

    Raises:
        ValueError: another shape, type or order.
    """
    n, m = rows.shape
    for array, shape in ((total, (m, m)), (rows, (n, m))):
        if array.shape != shape or array.dtype != np.float64 or not array.flags.c_contiguous:
            raise ValueError(f"{array.dtype} of the shape {array.shape}, not contiguous float64 of {shape}")
    dsyrk = _dsyrk()
    if dsyrk is None:
        total += np.tril(rows.T @ rows)
        return
    one, order, inner = ctypes.c_double(1), ctypes.c_int(m), ctypes.c_int(n)
    columns = ctypes.byref(order)
    # To Fortran rows are columns: X is X^T, and the lower triangle the upper one.
    dsyrk(
        *(b"U", b"N", columns, ctypes.byref(inner), ctypes.byref(one), rows.ctypes.data, columns),
        *(ctypes.byref(one), total.ctypes.data, columns),
    )


@cache
def _dsyrk() -> Callable[..., None] | None:
    capsule = getattr(cython_blas, "__pyx_capi__", {}).get("dsyrk")
    if capsule is None:
        return None
    name = _c_api("PyCapsule_GetName", ctypes.c_char_p, ctypes.py_object)(capsule)
    if re.sub(r"\w+_d \*", "d *", name.decode()) != _SIGNATURE:
        return None
    pointer = _c_api("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(capsule, name)
    text, number, array = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p
    # Functions of this type are called without the interpreter's lock.
    kind = ctypes.CFUNCTYPE(None, text, text, number, number, number, array, number, number, array, number)
    return kind(pointer)


def _c_api(name: str, result: Any, *arguments: Any) -> Any:
    """Return a function of Python's C API; one of its own, so that other users of ``ctypes`` see no change."""
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))
