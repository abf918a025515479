"""The weighted sum of the meta-objective over tasks, at once or in chunks."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PRNGKeyArray, PyTree, Scalar

from innerloop.checks import describe, is_floating
from innerloop.errors import StructureError
from innerloop.gradients.missing import missing_derivatives_explained
from innerloop.gradients.reach import watch_reach
from innerloop.masks import padding_rows
from innerloop.trees import cast_like, element_structure, stacked, widened

SumOverTasks = Callable[[PyTree, PyTree, Array, Array], tuple[Scalar, PyTree, PyTree]]
"""`(meta, episodes, keys, weights) -> (total, aux, grads)`: the weighted sum of the tasks' losses,
aux per task, and the gradient of the sum. All arguments except meta have the task axis. A `Spread`
is given the sum over lists of arrays, which are the leaves of `episodes` and `aux`."""

Spread = Callable[[SumOverTasks], SumOverTasks]
"""Maps a sum over tasks to the same sum computed in another way, such as over devices."""


def sum_over_tasks(
    objective: Callable[[PyTree, Any, PRNGKeyArray], tuple[Scalar, PyTree]],
    chunk: int | None,
    spread: Spread | None,
    unreached: list[str],
) -> SumOverTasks:
    """The weighted sum over tasks; tracing it writes the unreached leaves to `unreached`.

    Chunks, devices and `vmap` divide and stack plain lists of arrays, because a pytree with its own
    batching rule may have a different tree structure when its first axis changes.
    """

    def sums(meta: PyTree, episodes: PyTree, keys: Array, weights: Array):
        task, results = element_structure(episodes), []

        def of_leaves(meta: PyTree, leaves: list, key: PRNGKeyArray):
            loss, aux = objective(meta, task.unflatten(leaves), key)
            leaves, result = jax.tree.flatten(aux)
            results.append(result)
            return loss, leaves

        at_once = partial(_weighted_sum, of_leaves, unreached)

        def by_chunk(meta: PyTree, leaves: list, keys: Array, weights: Array):
            if chunk is None or chunk >= len(weights):
                return at_once(meta, leaves, keys, weights)
            return _chunked_sum(at_once, chunk, meta, leaves, keys, weights)

        over_tasks = spread(by_chunk) if spread else by_chunk
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(episodes)]
        total, aux, grads = over_tasks(meta, leaves, keys, weights)
        return total, stacked(results[0], aux, len(weights)), grads

    return sums


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


def _weighted_sum(objective: Callable, unreached: list[str], meta, episodes, keys, weights):
    """Weighted sum of the task losses, aux per task, and the gradient of the sum."""
    mark, names = watch_reach(meta)

    def total(meta):
        if len(weights) == 1:  # a vmap over one task would only hide its shapes from the compiler
            task = jax.tree.map(lambda leaf: leaf[0], (episodes, keys))
            result = objective(mark(meta), *task)
            loss, aux = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], result)
        else:
            own, axes = _for_each_task(mark(meta), len(weights))
            loss, aux = jax.vmap(objective, (axes, 0, 0))(own, episodes, keys)
        loss = widened(loss)
        return jnp.sum(weights.astype(loss.dtype) * loss), aux

    with missing_derivatives_explained():
        (value, aux), grads = jax.value_and_grad(total, has_aux=True)(meta)
    unreached[:] = names()
    return value, aux, grads


def _for_each_task(meta: PyTree, tasks: int) -> tuple[PyTree, PyTree]:
    """Meta as the tasks read it, and its task axes.

    A narrow leaf is given to each task of its own, so that the tasks' gradients are summed in
    float32 and not in the leaf's type, where a sum of many terms stops growing.
    """
    narrow = jax.tree.map(lambda leaf: jnp.result_type(leaf).itemsize < 4, meta)
    axes = jax.tree.map(lambda is_narrow: 0 if is_narrow else None, narrow)

    def own(leaf: Array, is_narrow: bool) -> Array:
        if not is_narrow:
            return leaf
        wide = leaf.astype(jnp.float32)
        return jnp.broadcast_to(wide, (tasks, *leaf.shape)).astype(leaf.dtype)

    return jax.tree.map(own, meta, narrow), axes


def _chunked_sum(at_once: SumOverTasks, chunk: int, meta, *batch):
    """The same sums over chunks of tasks, with the gradients accumulated in the loop's carry."""
    tasks = len(batch[-1])
    chunks = math.ceil(tasks / chunk)
    size = math.ceil(tasks / chunks)
    if chunks * size > tasks:  # only if needed, because it copies the batch
        rows = padding_rows(tasks, chunks * size)
        episodes, keys, weights = jax.tree.map(lambda leaf: leaf[rows], batch)
        batch = (episodes, keys, jnp.where(jnp.arange(chunks * size) < tasks, weights, 0))
    if size > 1:
        batch = jax.tree.map(lambda leaf: leaf.reshape(chunks, size, *leaf.shape[1:]), batch)

    def body(grads, part):
        if size == 1:  # an axis of size 1 outside the loop would copy the batch
            part = jax.tree.map(lambda leaf: leaf[None], part)
        total, aux, part_grads = at_once(meta, *part)
        return jax.tree.map(jnp.add, grads, widened(part_grads)), (total, aux)

    zeros = widened(jax.tree.map(jnp.zeros_like, meta))
    grads, (totals, aux) = jax.lax.scan(body, zeros, batch)
    aux = jax.tree.map(lambda leaf: leaf.reshape(chunks * size, *leaf.shape[2:])[:tasks], aux)
    return jnp.sum(totals), aux, cast_like(grads, meta)
