"""How alike two sets of vectors are, every one of the one against every one of the other."""

import jax.numpy as jnp
from jaxtyping import Array, Float


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
