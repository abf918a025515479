"""Many outer steps in one call to the device."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from innerloop.devices.placement import OneDevice, Placement
from innerloop.estimators import Estimator
from innerloop.estimators.metrics import is_sound
from innerloop.trees import length


class TrainState(NamedTuple):
    """All that the next outer step needs.

    Attributes:
        meta: The meta-parameters.
        average: The exponential moving average of `meta`. It holds the values in float32 at least:
            a step of a narrower type would be too coarse for it to move. The same values as `meta`
            if no average is asked for.
        optimizer: The outer optimizer's state.
        step: The number of outer steps taken.
        faults: How many of them had a loss or a meta-gradient that was not finite.
        in_a_row: How many since the last step that was finite.
        estimator: The estimator's state.
    """

    meta: PyTree
    average: PyTree
    optimizer: PyTree
    step: Int[Array, ""]
    faults: Int[Array, ""]
    in_a_row: Int[Array, ""]
    estimator: PyTree = ()


class Program(eqx.Module):
    """What is compiled: the outer step of an estimator, an optimizer and a placement.

    It is an argument of the compiled functions, so its arrays are no constants of them.
    """

    estimator: Estimator
    optimizer: optax.GradientTransformation
    averaging: float = eqx.field(static=True)
    placement: Placement = OneDevice()

    def update(self, state: TrainState, grads: PyTree) -> TrainState:
        """What a finite meta-gradient does to the state."""
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            updates, optimizer_state = self.optimizer.update(grads, state.optimizer, state.meta)
            meta = optax.apply_updates(state.meta, updates)
            wide = jax.tree.map(_widened, meta)
            average = optax.incremental_update(wide, state.average, 1 - self.averaging)
        place = self.placement
        meta, average = place.as_state(meta), place.as_state(average)
        optimizer_state = place.as_optimizer_state(self.optimizer, optimizer_state, meta)
        moved = {"meta": meta, "average": average, "optimizer": optimizer_state}
        return state._replace(**moved, step=state.step + 1, in_a_row=jnp.int32(0))

    def step(self, state: TrainState, data: Any, key: PRNGKeyArray):
        """One outer step: `(state, metrics, sound)`. A step that is not sound changes nothing."""
        estimate, after = self.estimator.step(state.meta, state.estimator, data, key, state.step)
        norm = length(estimate.grads)
        sound = is_sound(estimate.loss, estimate.grads)
        moved = lambda state, grads, after: self.update(state, grads)._replace(estimator=after)
        state = jax.lax.cond(sound, moved, lambda state, *_: state, state, estimate.grads, after)
        metrics = {"loss": estimate.loss, "gradient_norm": norm} | estimate.metrics
        return state, self.placement.whole(metrics), sound


def init_state(
    meta: PyTree, optimizer: optax.GradientTransformation, estimator: PyTree = ()
) -> TrainState:
    """The state before the first outer step.

    Its leaves are arrays of a definite dtype, as they come back from a checkpoint: numbers and
    weakly typed arrays in an optimizer's state would promote otherwise after a restart.
    """
    meta = jax.tree.map(definite, meta)
    average = jax.tree.map(_widened, meta)
    zero = jnp.int32(0)
    optimizer_state = jax.tree.map(definite, optimizer.init(meta))
    return TrainState(meta, average, optimizer_state, zero, zero, zero, estimator)


def averaged(state: TrainState) -> PyTree:
    """The average as meta-parameters: what is validated, kept and returned."""
    return jax.tree.map(lambda leaf, mean: mean.astype(leaf.dtype), state.meta, state.average)


@eqx.filter_jit(donate="none")
def outer_steps(
    program: Program,
    state: TrainState,
    data: Any,
    key: PRNGKeyArray,
    n: Int[Array, ""],
    at_most: int,
) -> tuple[TrainState, dict[str, Any], Int[Array, ""]]:
    """Take n <= `at_most` outer steps, or end at the first whose loss or gradient is not finite.

    n is a traced number: all n have the same compiled program.

    Args:
        program: What a step does.
        state: The state before the first step.
        data: What the host gave for these steps, leaves `(at_most, ...)`.
        key: The run's key.
        n: How many steps are wanted.
        at_most: The size of the arrays of metrics.

    Returns:
        The state, the metrics, and the number of steps that were finite. A step that is not finite
        leaves the state as it was. The metrics are arrays of length `at_most`, whose rows are
        filled up to and with that step.
    """
    of_step = lambda i: jax.tree.map(lambda leaf: leaf[i], data)
    shapes = eqx.filter_eval_shape(program.step, state, of_step(0), key)[1]
    empty = jax.tree.map(lambda leaf: jnp.full(at_most, jnp.nan, leaf.dtype), shapes)

    def goes_on(carry):
        _, _, i, sound = carry
        return (i < n) & sound

    def body(carry):
        state, filled, i, _ = carry
        state, metrics, sound = program.step(state, of_step(i), key)
        filled = jax.tree.map(lambda row, x: row.at[i].set(x), filled, metrics)
        return state, filled, i + sound.astype(i.dtype), sound

    start = (state, empty, jnp.int32(0), jnp.bool_(True))
    state, filled, taken, _ = jax.lax.while_loop(goes_on, body, start)
    return state, filled, taken


def definite(leaf: Any) -> Array:
    """The leaf as an array whose dtype is not weak; a random key as it is."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return jnp.asarray(leaf, jnp.result_type(leaf))


def _widened(leaf: Array) -> Array:
    return leaf.astype(jnp.float32) if jnp.finfo(leaf.dtype).bits < 32 else leaf
