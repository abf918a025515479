"""Masks for padded rows and for outputs that are not classes of a task."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from innerloop.checks import describe
from innerloop.errors import StructureError


def padding_rows(count: int, rows: int) -> np.ndarray:
    """The indices 0 ... count - 1, and then the last one again, up to `rows` of them.

    Rows that are padded in this way are as valid as the data itself.
    """
    return np.minimum(np.arange(rows), count - 1)


def check_mask(mask: Any, rows: PyTree) -> None:
    """Raise `StructureError` unless the mask holds one boolean for each row of these arrays."""
    counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(rows)}
    is_boolean = getattr(mask, "dtype", None) == jnp.bool_
    if not is_boolean or mask.ndim != 1 or counts != {mask.shape}:
        raise StructureError(
            "the mask does not fit the rows",
            got=f"mask {describe(mask)} for rows {describe(rows)}",
            expected="one boolean per row, shape (rows,)",
        )


def row_mask(values: Shaped[Array, "..."], mask: Array) -> Bool[Array, "..."]:
    """The mask, `(rows,)`, with trailing axes of size 1, so that it broadcasts against `values`.

    Raises:
        StructureError: If the mask does not hold one boolean per row.
    """
    check_mask(mask, values)
    return mask.reshape(mask.shape + (1,) * (values.ndim - 1))


def blank_rows(values: Shaped[Array, "..."], mask: Array | None) -> Shaped[Array, "rows ..."]:
    """`values` with zeros in the padded rows; unchanged if the mask is None."""
    if mask is None:
        return values
    return jnp.where(row_mask(values, mask), values, jnp.zeros((), values.dtype))


def of_classes(
    scores: Float[Array, "*rows ways"], classes: Array | np.ndarray | None, absent: float
) -> Float[Array, "*rows ways"]:
    """`scores` with `absent` at outputs that are not classes of the task; unchanged if `classes` is
    None.

    Raises:
        StructureError: If `classes` does not hold one boolean per score.
    """
    if classes is None:
        return scores
    if classes.shape != scores.shape or classes.dtype != jnp.bool_:
        raise StructureError(
            "the classes of the task do not fit the scores",
            got=f"classes {describe(classes)} for scores {describe(scores)}",
            expected="one boolean per row and output",
        )
    return jnp.where(classes, scores, jnp.asarray(absent, scores.dtype))


def masked_mean(
    values: Float[Array, "..."],
    mask: Array | None = None,
    axis: tuple[int, ...] | None = None,
) -> Float[Array, "..."]:
    """The mean of the unmasked rows over `axis`, which includes axis 0 (None: over all axes).

    If the mask leaves no row, the mean and its gradient are zero, and never NaN. The content of
    padded rows has no effect.
    """
    if mask is None:
        return jnp.mean(values, axis=axis)
    axes = range(values.ndim) if axis is None else axis
    entries_per_row = math.prod(values.shape[i] for i in axes if i != 0)
    total = jnp.sum(blank_rows(values, mask), axis=axis)
    # With at least one row in the denominator, an empty mean is 0 / entries instead of 0 / 0.
    rows = jnp.maximum(jnp.sum(mask), 1).astype(values.dtype)
    return total / (rows * entries_per_row)
