"""Many outer steps in one call to the device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree, Scalar

from innerloop.objective import MetaValueAndGrad
from innerloop.tasks import TaskDistribution
from innerloop.training.batch import batch_and_key
from innerloop.training.evaluate import named_metrics
from innerloop.training.feed import Block
from innerloop.training.placement import OneDevice, Placement

Update = Callable[["TrainState", PyTree], "TrainState"]
"""`(state, meta-gradient) -> state` after an outer step."""


class TrainState(NamedTuple):
    """All that the next outer step needs.

    - `average`: exponential moving average of `meta`, of which it holds the values in float32 at
      least: a step of a narrower type would be too coarse for it to move. The same values as `meta`
      where none is asked for.
    - `step`: number of outer steps taken
    - `faults`: how many of them had a meta-gradient that was not finite; `in_a_row`: since the last
      sound one
    """

    meta: PyTree
    average: PyTree
    optimizer: PyTree
    step: Int[Array, ""]
    faults: Int[Array, ""]
    in_a_row: Int[Array, ""]


def init_state(meta: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first outer step."""
    meta = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), meta)
    average = jax.tree.map(_widened, meta)
    zero = jnp.int32(0)
    return TrainState(meta, average, optimizer.init(meta), zero, zero, zero)


def averaged(state: TrainState) -> PyTree:
    """The average as meta-parameters: what is validated, kept and returned."""
    return jax.tree.map(lambda leaf, mean: mean.astype(leaf.dtype), state.meta, state.average)


def updating(
    optimizer: optax.GradientTransformation, averaging: float, placement: Placement
) -> Update:
    """What a sound meta-gradient does to the state."""

    def update(state: TrainState, grads: PyTree) -> TrainState:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            updates, optimizer_state = optimizer.update(grads, state.optimizer, state.meta)
            meta = optax.apply_updates(state.meta, updates)
            wide = jax.tree.map(_widened, meta)
            average = optax.incremental_update(wide, state.average, 1 - averaging)
        meta, average = placement.as_state(meta), placement.as_state(average)
        optimizer_state = placement.as_optimizer_state(optimizer, optimizer_state, meta)
        return TrainState(
            meta, average, optimizer_state, state.step + 1, state.faults, jnp.int32(0)
        )

    return update


def outer_steps(
    value_and_grad: MetaValueAndGrad,
    update: Update,
    *,
    batch: int,
    at_most: int,
    placement: Placement = OneDevice(),
) -> Callable[..., tuple[TrainState, dict[str, Any], Int[Array, ""]]]:
    """A compiled function `(state, tasks, key, n) -> (state, metrics, sound)`.

    It takes n <= `at_most` steps, or ends at the first whose loss or meta-gradient is not finite.
    That one leaves the state as it was, and `sound` is the number of steps before it (n where
    there is none). The metrics are arrays of length `at_most`, of which the rows of these steps are
    filled. n is a traced number: there is one compilation for all of them. `tasks` is an argument,
    so its arrays are no constants of the compiled program.
    """

    def one_step(state: TrainState, tasks: TaskDistribution | Block, key: PRNGKeyArray):
        episodes, task_key = batch_and_key(tasks, key, state.step, batch, placement)
        (loss, aux), grads = value_and_grad(state.meta, episodes, task_key)
        norm = global_norm(grads)
        sound = is_sound(loss, grads)
        state = jax.lax.cond(sound, update, lambda state, grads: state, state, grads)
        metrics = {"loss": loss, "gradient_norm": norm} | _mean_metrics(aux, episodes)
        return state, placement.whole(metrics), sound

    @eqx.filter_jit(donate="none")
    def steps(
        state: TrainState, tasks: TaskDistribution | Block, key: PRNGKeyArray, n: Int[Array, ""]
    ):
        shapes = eqx.filter_eval_shape(one_step, state, tasks, key)[1]
        empty = jax.tree.map(lambda leaf: jnp.full(at_most, jnp.nan, leaf.dtype), shapes)

        def goes_on(carry):
            _, _, i, sound = carry
            return (i < n) & sound

        def body(carry):
            state, filled, i, _ = carry
            state, metrics, sound = one_step(state, tasks, key)
            filled = jax.tree.map(lambda row, x: row.at[i].set(x), filled, metrics)
            return state, filled, i + sound.astype(i.dtype), sound

        start = (state, empty, jnp.int32(0), jnp.bool_(True))
        state, filled, taken, _ = jax.lax.while_loop(goes_on, body, start)
        return state, filled, taken

    return steps


def is_sound(loss: Scalar, grads: PyTree) -> Bool[Array, ""]:
    """Whether a loss and its gradient are finite."""
    parts = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(grads)]
    return jnp.all(jnp.stack([jnp.isfinite(loss), *parts]))


def global_norm(grads: PyTree) -> Scalar:
    """Of all leaves together, in float32 at least, whose squares go further."""
    with jax.numpy_dtype_promotion("standard"):
        return optax.tree.norm(jax.tree.map(_widened, grads))


def _widened(leaf: Array) -> Array:
    return leaf.astype(jnp.float32) if jnp.finfo(leaf.dtype).bits < 32 else leaf


def _mean_metrics(aux: Any, episodes: Any) -> dict:
    """Means over tasks of the outer loss's metrics, for the log, weighted as the loss is.

    Nothing for a mixture, whose aux is a tuple.
    """
    metrics = getattr(aux, "metrics", None)
    named_metrics(jax.tree.map(lambda leaf: leaf[0], metrics))
    if not metrics:
        return {}
    if episodes.weight is None:
        return {name: jnp.mean(leaf) for name, leaf in metrics.items()}

    def weighted(leaf: Array) -> Scalar:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            leaf = leaf.astype(episodes.weight.dtype)
        weights = episodes.weight.astype(leaf.dtype)
        return jnp.sum(weights * leaf) / jnp.sum(weights)

    return {name: weighted(leaf) for name, leaf in metrics.items()}
