"""The loop that keeps every intermediate value between forward and backward pass."""

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
"""The largest number of steps that is unrolled.

This saves the copies into and out of a scan's stacked buffers; longer loops compile too slowly."""


class StoreAll(Loop):
    """Keeps every intermediate value of every inner step.

    Memory: the intermediate values of K steps. Time: nothing is computed twice.
    """

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
    """Runs steps `first`, `first + 1`, ...: unrolled if they are few, as a scan if many."""
    if steps > UNROLL_UP_TO:
        return jax.lax.scan(step, state, first + jnp.arange(steps, dtype=jnp.int32))
    outputs = []
    for t in range(steps):
        state, output = step(state, first + np.int32(t))
        outputs.append(output)
    return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def concatenate(head: PyTree, tail: PyTree) -> PyTree:
    """Two stacks of outputs, joined along the step axis."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), head, tail)
