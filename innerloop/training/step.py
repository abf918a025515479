"""Many outer steps in one call to the device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree, Scalar

from innerloop.devices.placement import OneDevice, Placement
from innerloop.tasks import TaskDistribution
from innerloop.training.feed import Block
from innerloop.trees import length

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
    - `carry`: inner runs that go on over outer steps, where the meta-gradient has any
    """

    meta: PyTree
    average: PyTree
    optimizer: PyTree
    step: Int[Array, ""]
    faults: Int[Array, ""]
    in_a_row: Int[Array, ""]
    carry: PyTree = ()


class Estimated(NamedTuple):
    """What an outer step is taken by.

    - `loss`, `grads`: of the meta-objective; `metrics`: scalars by name, for the log
    - `carry`: what the next step's estimate goes on from
    """

    loss: Scalar
    metrics: dict[str, Scalar]
    grads: PyTree
    carry: PyTree


Estimate = Callable[..., Estimated]
"""`(meta, carry, tasks, key, step) -> Estimated`, such as an `Estimation` is."""


def init_state(
    meta: PyTree, optimizer: optax.GradientTransformation, carry: PyTree = ()
) -> TrainState:
    """The state before the first outer step.

    Its leaves are arrays of a definite dtype, as they come back from a checkpoint: numbers and
    weakly typed arrays in an optimizer's state would promote otherwise after a restart.
    """
    meta = jax.tree.map(_definite, meta)
    average = jax.tree.map(_widened, meta)
    zero = jnp.int32(0)
    optimizer_state = jax.tree.map(_definite, optimizer.init(meta))
    return TrainState(meta, average, optimizer_state, zero, zero, zero, carry)


def _definite(leaf: Any) -> Array:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return jnp.asarray(leaf, jnp.result_type(leaf))


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
        moved = {"meta": meta, "average": average, "optimizer": optimizer_state}
        return state._replace(**moved, step=state.step + 1, in_a_row=jnp.int32(0))

    return update


def outer_steps(
    estimate: Estimate,
    update: Update,
    *,
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
        loss, metrics, grads, carry = estimate(state.meta, state.carry, tasks, key, state.step)
        norm = length(grads)
        sound = is_sound(loss, grads)
        moved = lambda state, grads, carry: update(state, grads)._replace(carry=carry)
        state = jax.lax.cond(sound, moved, lambda state, *_: state, state, grads, carry)
        metrics = {"loss": loss, "gradient_norm": norm} | metrics
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


def _widened(leaf: Array) -> Array:
    return leaf.astype(jnp.float32) if jnp.finfo(leaf.dtype).bits < 32 else leaf
