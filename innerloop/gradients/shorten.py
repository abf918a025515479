"""How long a gradient is, and the same direction at no more than a length."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, Scalar


def length(tree: PyTree) -> Scalar:
    """The norm of all leaves as one vector, in float32 at least; 0 of no leaves.

    Its squares do not overflow on the way. The norm itself may, where it has no place in float32.
    """
    with jax.numpy_dtype_promotion("standard"):  # leaves may differ in type
        _, unit, norm = _in_units(jax.tree.leaves(tree))
        return unit * norm


def shorten(tree: PyTree, norm: float | Scalar) -> PyTree:
    """The tree, or where it is longer than `norm` its direction, as long. A leaf that is not finite
    stays so.
    """
    leaves, treedef = jax.tree.flatten(tree)
    with jax.numpy_dtype_promotion("standard"):
        directions, unit, long = _in_units(leaves)
        short = [
            jnp.where(unit * long > norm, each * (norm / long), leaf).astype(leaf.dtype)
            for leaf, each in zip(leaves, directions, strict=True)
        ]
    return treedef.unflatten(short)


def _in_units(leaves: list[Array]) -> tuple[list[Array], Scalar, Scalar]:
    """The leaves divided by the largest number in them, that number, and the quotients' norm.

    Both are first brought towards 1, exactly: the reciprocal of a number near the end of float32's
    range, by which a compiler multiplies, is rounded to zero.
    """
    leaves = [leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in leaves]
    largest = [jnp.max(jnp.abs(leaf), initial=0) for leaf in leaves]
    unit = jnp.max(jnp.stack(largest)) if largest else jnp.zeros(())
    nearer = jnp.where(unit > 1, 2.0**-64, 2.0**64)
    divisor = jnp.where(unit > 0, unit * nearer, 1)
    quotients = [leaf * nearer / divisor for leaf in leaves]
    norm = optax.tree.norm(quotients) if quotients else jnp.zeros(())
    return quotients, unit, jnp.where(norm > 0, norm, 1)
