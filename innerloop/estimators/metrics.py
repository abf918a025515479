"""The metrics of an outer step: means over its tasks."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from innerloop.checks import is_floating
from innerloop.errors import StructureError
from innerloop.trees import widened

RESERVED = ("loss", "gradient_norm", "diverged")
"""The metrics that training reports itself."""


def named_metrics(aux: Any) -> dict[str, Any]:
    """An outer loss's aux as metrics.

    Raises:
        StructureError: It is no dict of scalars, or has a name that training uses itself.
    """
    if aux is None:
        return {}
    if isinstance(aux, dict) and all(jnp.shape(leaf) == () for leaf in aux.values()):
        taken = [name for name in RESERVED if name in aux]
        if taken:
            raise StructureError(
                "the outer loss's aux has an entry with a name that training reserves",
                got=f"aux with {', '.join(map(repr, aux))}",
                expected=f"other names than {', '.join(map(repr, RESERVED))}",
                write=f"return loss, {{'my_{taken[0]}': ...}} in outer_loss",
            )
        return aux
    raise StructureError(
        "training and evaluation report the outer loss's aux by name",
        got=f"aux of type {type(aux).__name__}",
        expected="a dict of scalars, or no aux",
        write="return loss, {'accuracy': accuracy} in outer_loss",
    )


def mean_metrics(metrics: PyTree, weight: Array | None) -> dict[str, Scalar]:
    """Means over tasks of the outer loss's metrics, weighted as the loss is."""
    named_metrics(jax.tree.map(lambda leaf: leaf[0], metrics))
    if not metrics:
        return {}
    if weight is None:
        return {name: jnp.mean(leaf) for name, leaf in metrics.items()}

    wide = widened(weight if is_floating(weight) else weight.astype(float))

    def weighted(leaf: Array) -> Scalar:
        leaf = widened(leaf) if is_floating(leaf) else leaf.astype(wide.dtype)
        weights = wide.astype(leaf.dtype)
        return jnp.sum(jnp.where(weights != 0, weights * leaf, 0)) / jnp.sum(weights)

    return {name: weighted(leaf) for name, leaf in metrics.items()}
