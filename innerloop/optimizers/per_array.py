"""Update rules that treat all arrays of the parameters alike, and the features they use."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, DTypeLike, Float, PyTree

from innerloop.checks import describe
from innerloop.errors import StructureError

EPSILON = 1e-9
"""Added to a mean square before its root: the inputs of a network are divided by the root."""


Given = list[tuple[Array, Any, Array]]
"""`(gradient, memory, parameter)` of every array."""


class PerArrayState(NamedTuple):
    """The number of steps, and the rule's memory of each array, in the order of the leaves."""

    steps: Array
    arrays: tuple[Any, ...]


def per_array(
    init: Callable[[Array], Any], update: Callable[[Array, Any, Array, Array], tuple[Array, Any]]
) -> optax.GradientTransformation:
    """The transformation that applies a rule to each array of the parameters.

    Args:
        init: `parameter -> memory`.
        update: `(gradient, memory, parameter, steps) -> (update, memory)`, where `steps` counts the
            steps taken before this one, in the parameter's dtype.
    """

    def update_each(given: Given, steps: Array) -> list[tuple[Array, Any]]:
        return [update(g, memory, param, steps.astype(param.dtype)) for g, memory, param in given]

    return of_all_arrays(init, update_each)


def of_all_arrays(
    init: Callable[[Array], Any],
    update: Callable[[Given, Array], list[tuple[Array, Any]]],
    dtype: DTypeLike | None = None,
) -> optax.GradientTransformation:
    """The transformation by a rule that sees all arrays of the parameters at once.

    Args:
        init: `parameter -> memory`.
        update: `([(gradient, memory, parameter), ...], steps) -> [(update, memory), ...]`.
        dtype: The dtype in which the rule receives the arrays; None for their own.
    """

    def arrays_of(tree: PyTree) -> list[Array]:
        return [leaf if dtype is None else leaf.astype(dtype) for leaf in jax.tree.leaves(tree)]

    def init_all(params: PyTree) -> PerArrayState:
        return PerArrayState(jnp.int32(0), tuple(map(init, arrays_of(params))))

    def update_all(updates: PyTree, state: Any, params: PyTree = None):
        _require_params(updates, params)
        given = list(zip(arrays_of(updates), state.arrays, arrays_of(params), strict=True))
        pairs = update(given, state.steps)
        leaves, tree = jax.tree.flatten(updates)
        moves = [move.astype(leaf.dtype) for (move, _), leaf in zip(pairs, leaves, strict=True)]
        memories = tuple(memory for _, memory in pairs)
        return jax.tree.unflatten(tree, moves), PerArrayState(state.steps + 1, memories)

    return optax.GradientTransformation(init_all, update_all)


def _require_params(updates: PyTree, params: PyTree) -> None:
    """Raise `StructureError` for an update without parameters, or with a gradient of others.

    A gradient of another shape would be broadcast to parameters that it does not belong to.
    """
    if params is None:
        raise StructureError(
            "a learned optimizer reads the parameters",
            got="update(gradient, state)",
            expected="the parameters as a third argument",
            write="optimizer.update(gradient, state, params)",
        )
    shapes = lambda tree: [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
    if shapes(updates) != shapes(params):
        raise StructureError(
            "the gradient is not of these parameters",
            got=describe(updates),
            expected=describe(params),
            write="optimizer.update(jax.grad(loss)(params), state, params)",
        )


def averages(like: Array, decays: tuple[float, ...]) -> Array:
    """Moving averages before the first step: zeros of the shape of `like` for each decay."""
    return jnp.zeros((len(decays), *like.shape), like.dtype)


def averaged(average: Array, value: Array, decays: tuple[float, ...]) -> Array:
    r"""$\beta m + (1 - \beta) x$ for each decay β, without correction of the bias to zero."""
    decay = jnp.asarray(decays, value.dtype).reshape(len(decays), *(1,) * value.ndim)
    return decay * average + (1 - decay) * value[None]


def normalised(features: Float[Array, "..."], axes: tuple[int, ...]) -> Float[Array, "..."]:
    r"""$x / \sqrt{\text{mean}(x^2) + \epsilon}$, the mean taken over `axes`."""
    mean = jnp.mean(jnp.square(features), axis=axes, keepdims=True)
    return features * jax.lax.rsqrt(mean + EPSILON)
