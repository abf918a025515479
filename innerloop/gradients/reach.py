"""Checks whether a gradient reaches meta, which JAX's zeros alone do not show.

JAX tracks structural zeros symbolically while it traces, so nothing is computed here: each function
is an identity whose derivative rule inspects the tangents or cotangents that it receives.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from innerloop.errors import DetachedError, GradientError
from innerloop.tangents import is_zero, tangent_leaves
from innerloop.trees import leaf_names


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def require_reach(value: Array, meta: PyTree, error: Callable[[str], GradientError]) -> Array:
    """Return `value`; differentiating in `meta` raises unless some leaf of it reaches the value.

    Args:
        value: The value to return.
        meta: The meta-parameters that are differentiated.
        error: Maps the names of the differentiated leaves to the error to raise.

    Returns:
        The value.
    """
    return value


@functools.partial(require_reach.defjvp, symbolic_zeros=True)
def _require_reach_jvp(error, primals, tangents):
    (value, meta), (value_tangent, meta_tangents) = primals, tangents
    if is_zero(value_tangent):
        tangents = zip(leaf_names(meta), tangent_leaves(meta_tangents), strict=True)
        differentiated = [name for name, tangent in tangents if not is_zero(tangent)]
        if differentiated:
            raise error(", ".join(differentiated))
        value_tangent = jnp.zeros_like(value)
    return value, value_tangent


def detached(leaves: str) -> DetachedError:
    """The error for an outer loss that no meta-parameter reaches."""
    return DetachedError(
        "the meta-gradient is identically zero: no meta-parameter reaches the outer loss",
        got=f"a detached graph for meta leaves {leaves}",
        expected="at least one leaf that init, the inner loss (unless first-order) or the "
        "outer loss reads without stop_gradient",
        write="Unroll() in place of FirstOrder(), or an init that returns a part of meta",
    )


def watch_reach(meta: PyTree) -> tuple[Callable[[PyTree], PyTree], Callable[[], list[str]]]:
    """Find out which leaves of `meta` a backward pass reaches.

    Returns:
        `(mark, unreached)`: `mark(meta)` is the identity, to be applied inside the function that is
        differentiated; after the backward pass, `unreached()` names the leaves it did not reach.
    """
    treedef = jax.tree.structure(meta)
    names = leaf_names(meta)
    reached: set[str] = set()

    def mark_leaf(name: str, leaf):
        @jax.custom_vjp
        def identity(x):
            return x

        def backward(_, cotangent):
            if is_zero(cotangent):
                return (None,)
            reached.add(name)
            return (cotangent,)

        identity.defvjp(lambda x: (x.value, None), backward, symbolic_zeros=True)
        return identity(leaf)

    def mark(meta: PyTree) -> PyTree:
        leaves = zip(names, jax.tree.leaves(meta), strict=True)
        return jax.tree.unflatten(treedef, [mark_leaf(name, leaf) for name, leaf in leaves])

    return mark, lambda: [name for name in names if name not in reached]


def watched_value_and_grad(function: Callable, meta: PyTree) -> tuple[Any, PyTree, list[str]]:
    """`((value, aux), gradient, unreached)`, with the names of the leaves that are not reached.

    Raises:
        DetachedError: If no leaf is reached.
    """
    mark, unreached = watch_reach(meta)
    of_marked = jax.value_and_grad(lambda meta: function(mark(meta)), has_aux=True)
    result, gradient = of_marked(meta)
    names = leaf_names(meta)
    if names and unreached() == names:
        raise detached(", ".join(names))
    return result, gradient, unreached()


def reached_leaves(gradient: PyTree, unreached: list[str]) -> list[Array | None]:
    """The leaves of a gradient, None for those that `watch_reach` found unreached."""
    leaves = zip(leaf_names(gradient), jax.tree.leaves(gradient), strict=True)
    return [None if name in unreached else leaf for name, leaf in leaves]
