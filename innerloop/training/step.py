"""Many outer steps in one call to the device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from innerloop.objective import MetaValueAndGrad
from innerloop.tasks import TaskDistribution
from innerloop.training.evaluate import named_metrics


class TrainState(NamedTuple):
    """All that the next outer step needs.

    - `average`: exponential moving average of `meta`; the same as `meta` where none is asked for
    - `step`: number of outer steps taken
    """

    meta: PyTree
    average: PyTree
    optimizer: PyTree
    step: Int[Array, ""]


def init_state(meta: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first outer step."""
    meta = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), meta)
    return TrainState(meta, meta, optimizer.init(meta), jnp.int32(0))


def outer_steps(
    value_and_grad: MetaValueAndGrad,
    optimizer: optax.GradientTransformation,
    *,
    batch: int,
    averaging: float,
    at_most: int,
) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
    """A compiled function `(state, tasks, key, n) -> (state, metrics)` of n <= `at_most` steps.

    Step i samples its tasks from `fold_in(key, i)`, however the steps are divided over calls. The
    metrics are arrays of length `at_most`, of which the first n are filled. n is a traced number:
    there is one compilation for all of them. `tasks` is an argument, so its arrays are no constants
    of the compiled program.
    """

    def one_step(state: TrainState, tasks: TaskDistribution, key: PRNGKeyArray):
        sample_key, task_key = jax.random.split(jax.random.fold_in(key, state.step))
        episodes = tasks.sample(sample_key, batch)
        (loss, aux), grads = value_and_grad(state.meta, episodes, task_key)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            updates, optimizer_state = optimizer.update(grads, state.optimizer, state.meta)
            meta = optax.apply_updates(state.meta, updates)
            average = optax.incremental_update(meta, state.average, 1 - averaging)
            norm = optax.tree.norm(grads)
        metrics = {"loss": loss, "gradient_norm": norm} | _mean_metrics(aux, episodes)
        return TrainState(meta, average, optimizer_state, state.step + 1), metrics

    @eqx.filter_jit(donate="none")
    def steps(state: TrainState, tasks: TaskDistribution, key: PRNGKeyArray, n: Int[Array, ""]):
        shapes = eqx.filter_eval_shape(one_step, state, tasks, key)[1]
        empty = jax.tree.map(lambda leaf: jnp.full(at_most, jnp.nan, leaf.dtype), shapes)

        def body(i, carry):
            state, filled = carry
            state, metrics = one_step(state, tasks, key)
            return state, jax.tree.map(lambda row, x: row.at[i].set(x), filled, metrics)

        return jax.lax.fori_loop(0, n, body, (state, empty))

    return steps


def _mean_metrics(aux: Any, episodes: Any) -> dict:
    """Means over tasks of the outer loss's metrics, for the log, weighted as the loss is.

    Nothing for a mixture, whose aux is a tuple.
    """
    metrics = getattr(aux, "metrics", None)
    named_metrics(jax.tree.map(lambda leaf: leaf[0], metrics))
    if not metrics:
        return {}
    weights = episodes.weight
    return {
        name: jnp.mean(leaf)
        if weights is None
        else jnp.sum(weights.astype(leaf.dtype) * leaf) / jnp.sum(weights.astype(leaf.dtype))
        for name, leaf in metrics.items()
    }
