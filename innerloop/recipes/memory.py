"""An adaptation that stores the support set row by row, and measures of how alike rows are."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from innerloop.adaptation import Procedure
from innerloop.arguments import at_least, checked
from innerloop.heads.base import Features, embedded, one_hot


class Memory(NamedTuple):
    """The rows of a support set: `(rows, width)`, `(rows, ways)`, and whether each counts."""

    features: Float[Array, "rows width"]
    classes: Float[Array, "rows ways"]
    present: Bool[Array, " rows"]


@checked("matching", ways=at_least(2, such_as=5))
def remembered(features: Features, ways: int) -> Procedure:
    """The adaptation that stores the features and classes of the support set."""

    def fn(meta, support, key) -> Memory:
        x, dtype = embedded(features, meta, support, key)
        classes = one_hot(support, ways, dtype)
        return Memory(x.astype(dtype), classes, classes.any(axis=1))

    return Procedure(fn)


def squared_distances(
    x: Float[Array, "rows width"], y: Float[Array, "others width"]
) -> Float[Array, "rows others"]:
    """Squared Euclidean distances. By differences: expanded squares cancel in narrow dtypes."""
    return jnp.sum(jnp.square(x[:, None, :] - y[None, :, :]), axis=2)


def cosine_similarities(
    x: Float[Array, "rows width"], y: Float[Array, "others width"]
) -> Float[Array, "rows others"]:
    """Cosines of the angles; 0, with a zero derivative, where a vector is zero."""
    return _unit(x) @ _unit(y).T


def _unit(x: Array) -> Array:
    square = jnp.sum(jnp.square(x), axis=1, keepdims=True)
    # The root is not taken at zero, where its derivative is infinite.
    safe = jnp.where(square > 0, square, 1)
    return jnp.where(square > 0, x / jnp.sqrt(safe), jnp.zeros((), x.dtype))
