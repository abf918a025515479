"""Loops over inner steps: what is stored between the forward and the backward pass."""

from collections.abc import Callable
from typing import Any

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import PyTree

from innerloop.adaptation import InnerStep, Loop

UNROLL_UP_TO = 8
"""Unrolling a short loop saves the copies into and out of the scan's stacked buffers; unrolling a
long one only makes the compiler slow."""

INNER_GRADIENT = "inner_gradient"
"""Name under which checkpointing finds the inner gradients, so that it can keep them."""
_INNER_STATE = "inner_state"


def store_all(
    step: Callable[[PyTree, Any], tuple[PyTree, Any]],
    state: PyTree,
    steps: int,
    first: Any = np.int32(0),
) -> tuple[PyTree, Any]:
    """Keep every intermediate value: unrolled for few steps, a scan for many. Memory grows by K.

    - `first`: number of the first of the `steps` steps
    """
    if steps > UNROLL_UP_TO:
        return jax.lax.scan(step, state, first + jnp.arange(steps, dtype=jnp.int32))
    outputs = []
    for t in range(steps):
        state, output = step(state, first + np.int32(t))
        outputs.append(output)
    return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def segments(length: int, keep_inner_gradients: bool, offload: bool) -> Loop:
    """Keep the state at the start of every segment of `length` steps; recompute the rest.

    - `keep_inner_gradients`: keep those too, which saves computing them once more
    - `offload`: what is kept waits in host memory
    """
    policy = _policy(keep_inner_gradients, offload)

    def loop(step: InnerStep, state: PyTree, steps: int) -> tuple[PyTree, Any]:
        if steps <= length:
            return store_all(step, state, steps)
        whole, rest = divmod(steps, length)

        def segment(count: int, state: PyTree, first: Any):
            state = jax.tree.map(lambda leaf: checkpoint_name(leaf, _INNER_STATE), state)
            return store_all(step, state, count, first)

        def whole_segment(state: PyTree, first: Any):
            return segment(length, state, first)

        # Inside a scan nothing is there to be shared with the recomputation, so the barriers
        # against sharing would only cost; a scan of one turn is inlined, and needs them.
        kept = jax.checkpoint(whole_segment, prevent_cse=whole == 1, policy=policy)
        state, outputs = jax.lax.scan(kept, state, length * jnp.arange(whole, dtype=jnp.int32))
        outputs = jax.tree.map(lambda leaf: leaf.reshape(whole * length, *leaf.shape[2:]), outputs)
        if rest:
            last = jax.checkpoint(
                lambda state: segment(rest, state, np.int32(whole * length)), policy=policy
            )
            state, tail = last(state)
            outputs = concatenate(outputs, tail)
        return state, outputs

    return loop


def binomial(slots: int) -> Loop:
    """Keep `slots` states, moved as the backward pass goes: constant memory for any K."""

    def loop(step: InnerStep, state: PyTree, steps: int) -> tuple[PyTree, Any]:
        times = jnp.arange(steps, dtype=jnp.int32)
        return eqxi.scan(step, state, times, kind="checkpointed", checkpoints=min(slots, steps))

    return loop


def concatenate(head: PyTree, tail: PyTree) -> PyTree:
    """Two stacks of outputs, one after the other."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), head, tail)


def _policy(keep_inner_gradients: bool, offload: bool):
    names = [_INNER_STATE, *([INNER_GRADIENT] if keep_inner_gradients else [])]
    if offload:
        return jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=names,
            offload_src="device",
            offload_dst="pinned_host",
        )
    return jax.checkpoint_policies.save_only_these_names(*names)
