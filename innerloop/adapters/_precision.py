"""The range of a floating-point type, which is smaller in narrow types."""

from typing import Any

import numpy as np

from innerloop.errors import InnerloopError


def require_range(
    before: Any, after: Any, what: str, place: str, kind: type[InnerloopError]
) -> None:
    """Raise an error if numbers that were finite are not finite in another type.

    Args:
        before: The array.
        after: The same array in the other type.
        what: What the array is, for the error.
        place: Where it is, for the error.
        kind: The class of the error.
    """
    finite = np.isfinite(before)
    if np.all(np.isfinite(after) | ~finite):
        return
    numbers = np.asarray(before)[finite].astype(np.float64)
    raise kind(
        f"{what} has numbers beyond the range of the dtype",
        got=f"{before.dtype} up to {np.abs(numbers).max():.3g} for {place}",
        expected=f"numbers that {after.dtype} has, or another dtype, such as {before.dtype}",
    )
