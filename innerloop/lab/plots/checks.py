"""Checks of what a figure is given, made before anything is drawn."""

import numpy as np
from numpy.typing import ArrayLike

from innerloop.errors import StructureError


def pair(
    first_name: str, first: ArrayLike, second_name: str, second: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Both as vectors, which must have one length."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise StructureError(
            f"{first_name} and {second_name} do not fit together",
            got=f"shapes {a.shape} and {b.shape}",
            expected="two vectors of one length",
            write=f"{second_name}={second_name}[:len({first_name})]",
        )
    return a, b


def nothing(what: str, write: str) -> StructureError:
    """The error of a figure that was given no `what`."""
    return StructureError(
        f"there are no {what} to draw", got="none", expected="at least one", write=write
    )
