"""How long a gradient is, and the same direction at no more than a length."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree, Scalar


def length(tree: PyTree) -> Scalar:
    """The norm of all leaves as one vector.

    Without overflow on the way: the squares of what has exploded have no place in float32.
    """
    with jax.numpy_dtype_promotion("standard"):  # leaves may differ in type
        leaves = jax.tree.leaves(tree)
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in leaves]))
        unit = jnp.where(largest > 0, largest, 1)
        return unit * optax.tree.norm([leaf / unit for leaf in leaves])


def shorten(tree: PyTree, norm: float | Scalar) -> PyTree:
    """The tree, times what makes it no longer than `norm`. What is not finite stays so."""
    with jax.numpy_dtype_promotion("standard"):
        share = jnp.minimum(1, norm / length(tree))
    return jax.tree.map(lambda leaf: leaf * share.astype(leaf.dtype), tree)
