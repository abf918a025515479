"""Shared by the heads: features of the support set, labels as vectors, regularisation strength."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray, PyTree, Scalar

from innerloop.checks import describe, explained, is_floating
from innerloop.errors import StructureError
from innerloop.labels import Labels, labels
from innerloop.masks import blank_rows
from innerloop.precision import at_least_float32
from innerloop.problem import Examples

Features = Callable[[PyTree, Examples, PRNGKeyArray], Float[Array, "rows width"]]
"""`(meta, batch, key) -> (rows, width)`: a learned representation of `Examples`.

It receives the whole batch, and not the inputs only, so that statistics of the batch can respect
the mask.
"""

Strength = float | Callable[[PyTree], Scalar]
"""A regularisation weight above 0, or a function of meta that gives it."""


def embedded(
    features: Features, meta: PyTree, support: Any, key: PRNGKeyArray
) -> tuple[Float[Array, "rows width"], jnp.dtype]:
    """The features of the support set, with zeros in the padded rows, and their dtype.

    A head is solved in float32 at least, so the features are returned in that precision. The
    parameters of the head have the returned dtype.

    Raises:
        StructureError: While tracing, if the features are not `(rows, width)`.
    """
    if not isinstance(support, Examples):
        raise StructureError(
            "a head learns from Examples",
            got=f"a support set of type {type(support).__name__}",
            expected="Examples(inputs, targets, mask=None)",
            write="Episode(Examples(inputs, targets), Examples(inputs, targets))",
        )
    values: Any = explained("features", features, "meta", "batch", "key")(meta, support, key)
    rows = jnp.shape(support.targets)[:1]
    if not is_floating(values) or jnp.ndim(values) != 2 or jnp.shape(values)[:1] != rows:
        raise StructureError(
            "features must be one vector of real numbers per row",
            got=f"features {describe(values)} for targets {describe(support.targets)}",
            expected="shape (rows, width)",
        )
    values = jnp.asarray(values)
    return at_least_float32(blank_rows(values, support.mask)), values.dtype


class Members(NamedTuple):
    """Which row belongs to which class.

    Attributes:
        vectors: `(rows, ways)`, a unit vector for each row, with zeros where a row does not count.
        labels: The labels of the rows.
    """

    vectors: Float[Array, "rows ways"]
    labels: Labels

    @property
    def marked(self) -> Float[Array, "rows ways"]:
        """The vectors, or NaN if a label is not a class of its task."""
        return self.labels.marked(self.vectors)


def members(support: Examples, ways: int, dtype: DTypeLike) -> Members:
    """The classes of the support set as unit vectors, with zeros in the rows that do not count.

    Raises:
        StructureError: While tracing, if the targets are not integers of shape `(rows,)`, or a
            label whose value is known is not a class of its task.
    """
    targets = jnp.asarray(support.targets)
    if targets.ndim != 1 or not jnp.issubdtype(targets.dtype, jnp.integer):
        raise StructureError(
            "a classifier needs integer classes",
            got=f"targets {describe(targets)}",
            expected=f"integers from 0 to {ways - 1}, shape (rows,)",
        )
    found = labels(support, ways)
    vectors = jax.nn.one_hot(found.targets, ways, dtype=dtype)
    return Members(blank_rows(vectors, found.counts), found)


def strength_at(strength: Strength, meta: PyTree, dtype: DTypeLike, head: str) -> Scalar:
    """The strength as a scalar array. Raises `StructureError` if a function returns another.

    A compiled program cannot raise for a value: there, a strength that is not above 0 becomes NaN.
    """
    of_meta = explained("strength", strength, "meta") if callable(strength) else None
    value: Any = of_meta(meta) if of_meta else strength
    traced = isinstance(value, Tracer)
    scalar = (isinstance(value, int) or is_floating(value)) and jnp.shape(value) == ()
    if not scalar or not (traced or 0 < float(value) < math.inf):
        raise StructureError(
            "the strength of a regularisation must be a finite number above 0",
            got=f"strength(meta) = {describe(value)}",
            expected="a scalar above 0",
            write=f"{head}(..., strength=lambda meta: jnp.exp(meta['log_strength']))",
        )
    array = jnp.asarray(value, dtype)
    return jnp.where((array > 0) & (array < jnp.inf), array, jnp.nan) if traced else array
