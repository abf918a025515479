"""The metrics of an outer step: means over its tasks."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from innerloop.checks import describe, is_floating, is_inexact
from innerloop.errors import StructureError
from innerloop.trees import widened

RESERVED = (
    *("loss", "gradient_norm", "diverged"),
    *("step", "seconds", "losses", "system", "validation", "faults"),
)
"""The metrics that training reports itself, and the other entries of a line of the log."""


def named_metrics(aux: Any) -> dict[str, Any]:
    """The aux of an outer loss as a dictionary of metrics.

    The name of a leaf is its path joined with dots: `{"error": {"top1": x}}` gives `"error.top1"`,
    and a tuple gives `"0"`, `"1"`. If the aux is a single number, its name is `"aux"`.

    Args:
        aux: A pytree of real scalars, or None.

    Returns:
        The metrics.

    Raises:
        StructureError: If a leaf is not a real scalar, two leaves have the same name, or training
            reserves a name.
    """
    leaves = jax.tree.leaves_with_path(aux)
    path = lambda path: jax.tree_util.keystr(path, simple=True, separator=".") or "aux"
    named = {path(place): leaf for place, leaf in leaves}
    real = (jnp.floating, jnp.integer, jnp.bool_)
    for name, leaf in named.items():
        is_real = any(jnp.issubdtype(jnp.result_type(leaf), kind) for kind in real)
        if jnp.shape(leaf) != () or not is_real:
            raise StructureError(
                "training and evaluation report the outer loss's aux, one number per task for "
                "each of its leaves",
                got=f"{name}: {describe(leaf)}",
                expected="real scalars, such as jnp.mean(...) of what has one value per row",
                write="return loss, {'accuracy': accuracy} in outer_loss",
            )
    taken = [name for name in RESERVED if name in named]
    if taken:
        raise StructureError(
            "the outer loss's aux has an entry with a name that training reserves",
            got=f"aux with {', '.join(map(repr, named))}",
            expected=f"other names than {', '.join(map(repr, RESERVED))}",
            write=f"return loss, {{'my_{taken[0]}': ...}} in outer_loss",
        )
    if len(named) < len(leaves):
        raise StructureError(
            "two entries of the outer loss's aux have the same name",
            got=", ".join(path(place) for place, _ in leaves),
            expected="names that stay apart when they are joined with dots",
        )
    return named


def mean_state(states: PyTree, weight: Array | None, before: PyTree) -> PyTree:
    """The mean over tasks of their model states, weighted as the loss is.

    For integers and booleans, such as counters, it is the largest value.

    Args:
        states: The model states after the tasks, leaves `(tasks, ...)`.
        weight: The weights of the tasks, or None. A task of weight 0 does not count.
        before: The state that the tasks began with, which stays if no task counts.
    """

    def mean(leaf: Array, old: Array) -> Array:
        counts = jnp.ones(len(leaf), bool) if weight is None else weight != 0
        shape = (-1, *(1,) * (leaf.ndim - 1))
        if not is_inexact(leaf):
            least = False if leaf.dtype == bool else jnp.iinfo(leaf.dtype).min
            most = jnp.max(jnp.where(counts.reshape(shape), leaf, least), axis=0)
            return jnp.where(jnp.any(counts), most, old)
        wide = widened(leaf)
        shares = jnp.where(counts, 1 if weight is None else weight, 0).astype(wide.dtype)
        kept = jnp.where(counts.reshape(shape), wide, 0)
        total = jnp.where(jnp.any(counts), jnp.sum(shares), 1)
        found = jnp.tensordot(shares, kept, axes=1) / total
        return jnp.where(jnp.any(counts), found.astype(leaf.dtype), old)

    return jax.tree.map(mean, states, before)


def mean_metrics(metrics: PyTree, weight: Array | None) -> dict[str, Scalar]:
    """Means over tasks of the outer loss's metrics, weighted as the loss is."""
    if not jax.tree.leaves(metrics):
        return {}
    named = jax.vmap(named_metrics)(metrics)
    if weight is None:
        return {name: jnp.mean(leaf) for name, leaf in named.items()}

    wide = widened(weight if is_floating(weight) else weight.astype(float))

    def weighted(leaf: Array) -> Scalar:
        leaf = widened(leaf) if is_floating(leaf) else leaf.astype(wide.dtype)
        weights = wide.astype(leaf.dtype)
        return jnp.sum(jnp.where(weights != 0, weights * leaf, 0)) / jnp.sum(weights)

    return {name: weighted(leaf) for name, leaf in named.items()}
