"""Loops that keep only some inner states and recompute the rest in the backward pass."""

import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import PyTree

from innerloop.adaptation import Adaptation, InnerStep, Loop
from innerloop.arguments import at_least, flag, optional
from innerloop.fidelity import EXACT, Derivatives, Fidelity
from innerloop.gradients.inner import INNER_GRADIENT
from innerloop.gradients.loops import concatenate, store_all
from innerloop.problem import Problem

_INNER_STATE = "inner_state"
"""Name by which the checkpointing policy finds the inner states."""


class Segments(Loop):
    """Keeps the inner state at the start of each segment; the backward pass repeats the steps.

    Memory: K/`length` states and the intermediate values of `length` steps, which is of the order
    of √K for the default length. Time: one more forward pass.

    The gradient is the same up to rounding, whatever the settings.

    Args:
        length: Steps per segment; by default ⌈√K⌉. A length of 1 keeps every state, and is best if
            a step's intermediate values take much more memory than its state, as they do in deep
            networks with large support sets.
        keep_inner_gradients: Whether to keep the inner gradients too (K times the size of the
            parameters). With `MixedMode()`, the repeated steps then compute no gradient.
        offload: Whether to keep the stored values in host memory, if the backend has host memory
            apart from its own (on a CPU it is the same memory). The meta-objective then has no
            reverse mode over reverse mode, for which JAX raises its own error about a cotangent of
            type `<host>`; use `jax.hessian` for second derivatives.

    Raises:
        StructureError: If `length` is below 1.
    """

    length: int | None = optional(at_least(1, such_as=4))
    keep_inner_gradients: bool = flag(default=False)
    offload: bool = flag(default=False)

    def __call__(self, step: InnerStep, state: PyTree, steps: int) -> tuple[PyTree, Any]:
        """See `Loop`."""
        length = self.length or math.isqrt(steps - 1) + 1
        if steps <= length:
            return store_all(step, state, steps)
        whole, rest = divmod(steps, length)
        policy = _policy(self.keep_inner_gradients, self.offload)

        def segment(count: int, state: PyTree, first: Any):
            state = jax.tree.map(lambda leaf: checkpoint_name(leaf, _INNER_STATE), state)
            return store_all(step, state, count, first)

        # Inside a scan the compiler cannot merge the recomputation with the forward pass, so the
        # barriers against it would only cost time. A scan of one turn is inlined and needs them.
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


@functools.cache  # JAX compares policies when it looks for a program that it has compiled
def _policy(keep_inner_gradients: bool, offload: bool) -> Callable[..., Any]:
    names = [_INNER_STATE, *([INNER_GRADIENT] if keep_inner_gradients else [])]
    if not offload:
        of_named = jax.checkpoint_policies.save_only_these_names(*names)
    else:
        of_named = jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=names,
            offload_src="device",
            offload_dst="pinned_host",
        )

    # JAX's own policies fail on some primitives: they have an argument called `prim`, and so do the
    # primitives of Equinox, on which Lineax, Optimistix and Diffrax are built.
    def policy(primitive: Any, /, *values: Any, **params: Any) -> Any:
        return primitive.name == "name" and of_named(primitive, *values, **params)

    return policy


class Binomial(Loop):
    """Keeps a fixed number of inner states and moves them during the backward pass (treeverse).

    Memory: `slots` states and the intermediate values of one step, for any K. Time: with s slots,
    each of K ≤ (s + r choose s) steps is taken at most r + 1 times (Griewank 1992; the
    implementation is Equinox's, of the online form by Stumm and Walther 2010). For example, s ≈
    log₂ K slots give r ≈ log₂ K.

    The meta-objective supports neither `jax.jvp` nor reverse mode over reverse mode; use
    `jax.hessian` for second derivatives.

    Args:
        slots: The number of states that are kept.

    Raises:
        StructureError: If `slots` is below 1.
    """

    slots: int = at_least(1, such_as=10)

    def __call__(self, step: InnerStep, state: PyTree, steps: int) -> tuple[PyTree, Any]:
        """See `Loop`."""
        times, slots = jnp.arange(steps, dtype=jnp.int32), min(self.slots, steps)
        return eqxi.scan(step, state, times, kind="checkpointed", checkpoints=slots)

    def fidelity(self, adaptation: Adaptation, problem: Problem | None = None) -> Fidelity:
        """Exact after any adaptation; without forward mode if there are inner steps."""
        if adaptation.steps == 0:
            return EXACT
        return EXACT._replace(derivatives=Derivatives(forward=False))
