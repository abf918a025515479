"""A batch of episodes: the number of its tasks, their weights, and tasks that do not count."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, PyTree

from innerloop.checks import describe, describe_briefly, is_floating
from innerloop.errors import StructureError
from innerloop.problem import Episode
from innerloop.trees import leaf_names, widened


def check_episode(episode: Episode) -> None:
    """Raise `StructureError` for anything else than an `Episode`."""
    if isinstance(episode, Episode):
        return
    several = isinstance(episode, list | tuple) and all(isinstance(e, Episode) for e in episode)
    write = "jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *episodes)" if several else None
    if hasattr(episode, "sample"):
        write = "tasks.evaluation_episodes(distribution, 100, seed=1)"
    raise StructureError(
        "a task comes as an Episode",
        got=describe_briefly(episode),
        expected="Episode(support, query); a batch of them has the task axis first in every array",
        write=write,
    )


def task_count(episodes: Episode) -> int:
    """The number of tasks in a batch; raises `StructureError` if its leaves do not agree."""
    check_episode(episodes)
    leaves = zip(leaf_names(episodes), jax.tree.leaves(episodes), strict=True)
    shapes = {name: getattr(leaf, "shape", ()) for name, leaf in leaves}  # strings have no shape
    counts = {name: shape[0] if shape else None for name, shape in shapes.items()}
    distinct = set(counts.values())
    tasks = distinct.pop() if len(distinct) == 1 else None
    if tasks:
        return tasks
    raise StructureError(
        "a batch of episodes needs one task axis that all its leaves share",
        got=f"leading axes {counts}",
        expected="the same number of tasks, at least 1, on every leaf",
    )


def task_weights(weight: Any, tasks: int, meta: PyTree) -> Array:
    """The weights of a batch, `(tasks,)`: ones if none are given.

    Weights that are given are scaled to the sum 1, and so are those of a narrow `meta`: a weight
    multiplies the derivative of the loss, and a sum over tasks may be beyond the range of its type.

    Args:
        weight: The weights of the episodes, or None.
        tasks: The number of tasks.
        meta: The meta-parameters.

    Returns:
        The weights. If their sum is 0, they are not scaled, and have no mean.

    Raises:
        StructureError: If they are not one real number for each task, or known to have no mean.
    """
    narrow = any(jnp.result_type(leaf).itemsize < 4 for leaf in jax.tree.leaves(meta))
    if weight is None and not narrow:
        return jnp.ones(tasks)
    weights = jnp.ones(tasks) if weight is None else _checked_weights(weight, tasks)
    total = jnp.sum(weights)
    return weights / jnp.where(total == 0, 1, total)


def _checked_weights(weight: Any, tasks: int) -> Array:
    dtype, real = getattr(weight, "dtype", None), (jnp.floating, jnp.integer, jnp.bool_)
    is_real = dtype is not None and any(jnp.issubdtype(dtype, kind) for kind in real)
    if not is_real or weight.shape != (tasks,):
        raise StructureError(
            "the weights of a batch are one real number for each task",
            got=f"weight of {describe(weight)} for {tasks} tasks",
            expected=f"an array of shape ({tasks},)",
            write=f"Episode(support, query, weight=jax.numpy.ones({tasks}))",
        )
    if not isinstance(weight, Tracer):
        total = float(np.sum(np.asarray(weight, np.float64)))
        if np.any(np.asarray(weight) != 0) and not 0 < abs(total) < math.inf:
            raise StructureError(
                "the weights of a batch have no mean",
                got=f"{tasks} weights with the sum {total:g}",
                expected="weights whose sum is finite and not 0, or no task that counts",
            )
    weight = jnp.asarray(weight)
    return widened(weight if is_floating(weight) else weight.astype(float))


def with_stand_ins(batch: PyTree, counts: Bool[Array, " tasks"]) -> PyTree:
    """The batch with a copy of the first task that counts in place of each that does not.

    Zero times a derivative that is not finite is NaN, so a task of weight zero must not be learned
    from its own data.
    """
    first = jnp.argmax(counts)

    def replaced(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)  # NumPy takes no traced index
        of_task = counts.reshape(-1, *(1,) * (leaf.ndim - 1))
        return jnp.where(of_task, leaf, leaf[first])

    return jax.tree.map(replaced, batch)
