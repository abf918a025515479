"""Loops over inner steps: what is stored between the forward and the backward pass."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from innerloop.adaptation import Adaptation, InnerStep, Loop
from innerloop.fidelity import EXACT, Fidelity
from innerloop.problem import Problem

UNROLL_UP_TO = 8
"""Unrolling a short loop saves the copies into and out of the scan's stacked buffers; unrolling a
long one only makes the compiler slow."""


class StoreAll(Loop):
    """Keeps every intermediate value of every inner step. Memory: K; nothing is computed twice."""

    def __call__(self, step: InnerStep, state: PyTree, steps: int) -> tuple[PyTree, Any]:
        """See `Loop`."""
        return store_all(step, state, steps)

    def fidelity(self, adaptation: Adaptation, problem: Problem | None = None) -> Fidelity:
        """Exact after any adaptation."""
        return EXACT


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


def concatenate(head: PyTree, tail: PyTree) -> PyTree:
    """Two stacks of outputs, one after the other."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), head, tail)
