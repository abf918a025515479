"""What an unrolled inner loop keeps for its backward pass."""

import math
from functools import partial
from typing import Any

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import PyTree

from innerloop.adaptation import Adaptation, InnerStep, Loop
from innerloop.arguments import at_least, optional
from innerloop.fidelity import EXACT, Derivatives, Fidelity
from innerloop.gradients.inner import INNER_GRADIENT
from innerloop.gradients.loops import concatenate, store_all
from innerloop.problem import Problem

_INNER_STATE = "inner_state"
"""Name under which the kept states are found."""


class Segments(Loop):
    """Keeps the inner state at the start of each segment; its steps are taken again going backward.

    Memory: K/`length` states, and the intermediate values of `length` steps, which is of the order
    of √K for the default length. Time: one more forward pass.

    The gradient is the same up to rounding, whatever the settings.

    Args:
        length: steps per segment; ⌈√K⌉ unless given. 1 keeps every state, and is best where a
            step's intermediate values take much more room than its state, as they do in deep
            networks with large support sets.
        keep_inner_gradients: keep the inner gradients too (K times the size of the parameters).
            With `MixedMode()`, the steps that are taken again then cost no gradient.
        offload: what is kept waits in host memory, where the backend has one apart from its own
            (on a CPU it is the same memory).

    Raises:
        StructureError: the length is below one.
    """

    length: int | None = optional(at_least(1, such_as=4))
    keep_inner_gradients: bool = False
    offload: bool = False

    def __call__(self, step: InnerStep, state: PyTree, steps: int) -> tuple[PyTree, Any]:
        """See `Loop`."""
        length = self.length or math.isqrt(steps - 1) + 1
        if steps <= length:
            return store_all(step, state, steps)
        whole, rest = divmod(steps, length)
        policy = self._policy()

        def segment(count: int, state: PyTree, first: Any):
            state = jax.tree.map(lambda leaf: checkpoint_name(leaf, _INNER_STATE), state)
            return store_all(step, state, count, first)

        # Inside a scan nothing is there to be shared with the recomputation, so the barriers
        # against sharing would only cost; a scan of one turn is inlined, and needs them.
        kept = jax.checkpoint(partial(segment, length), prevent_cse=whole == 1, policy=policy)
        state, outputs = jax.lax.scan(kept, state, length * jnp.arange(whole, dtype=jnp.int32))
        outputs = jax.tree.map(lambda leaf: leaf.reshape(whole * length, *leaf.shape[2:]), outputs)
        if rest:
            last = jax.checkpoint(
                partial(segment, rest, first=np.int32(whole * length)), policy=policy
            )
            state, tail = last(state)
            outputs = concatenate(outputs, tail)
        return state, outputs

    def fidelity(self, adaptation: Adaptation, problem: Problem | None = None) -> Fidelity:
        """Exact after any adaptation."""
        return EXACT

    def _policy(self):
        names = [_INNER_STATE, *([INNER_GRADIENT] if self.keep_inner_gradients else [])]
        if not self.offload:
            return jax.checkpoint_policies.save_only_these_names(*names)
        return jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=names,
            offload_src="device",
            offload_dst="pinned_host",
        )


class Binomial(Loop):
    r"""Keeps a fixed number of inner states, placed anew as the backward pass goes (treeverse).

    Memory: `slots` states and the intermediate values of one step, for any K. Time: with s slots,
    K ≤ (s + r choose s) steps are each taken at most r + 1 times (Griewank 1992; the online form,
    by Stumm and Walther 2010, is Equinox's): s ≈ log₂ K makes r ≈ log₂ K.

    The meta-objective has no `jax.jvp`, and no reverse mode over reverse mode: take second
    derivatives by `jax.hessian`.

    Args:
        slots: number of states kept

    Raises:
        StructureError: there is less than one slot.
    """

    slots: int = at_least(1, such_as=10)

    def __call__(self, step: InnerStep, state: PyTree, steps: int) -> tuple[PyTree, Any]:
        """See `Loop`."""
        times, slots = jnp.arange(steps, dtype=jnp.int32), min(self.slots, steps)
        return eqxi.scan(step, state, times, kind="checkpointed", checkpoints=slots)

    def fidelity(self, adaptation: Adaptation, problem: Problem | None = None) -> Fidelity:
        """Exact after any adaptation."""
        if adaptation.steps == 0:
            return EXACT
        return EXACT._replace(derivatives=Derivatives(forward=False))
