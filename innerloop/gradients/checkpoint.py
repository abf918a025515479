"""What an unrolled inner loop keeps for its backward pass."""

import abc
import math
from typing import Any

import equinox as eqx
from jaxtyping import PyTree

from innerloop.adaptation import InnerStep
from innerloop.gradients.loops import binomial, segments, store_all
from innerloop.problem import check_count


class Checkpoint(eqx.Module):
    """A way to store the inner loop. It changes memory and time, never the gradient."""

    @abc.abstractmethod
    def loop(self, step: InnerStep, state: PyTree, steps: int) -> tuple[PyTree, Any]:
        """The loop that stores it so."""


class StoreAll(Checkpoint):
    """Every intermediate value of every inner step: memory K, nothing is computed twice."""

    def loop(self, step: InnerStep, state: PyTree, steps: int) -> tuple[PyTree, Any]:
        """See `Checkpoint`."""
        return store_all(step, state, steps)


class Segments(Checkpoint):
    """The inner state at the start of every segment; its steps are taken again going backward.

    Memory: K/`length` states, and the intermediate values of `length` steps, which is of the order
    of √K for the default length. Time: one more forward pass.

    - `length`: steps per segment; ⌈√K⌉ unless given. 1 keeps every state, and is best where a
      step's intermediate values take much more room than its state, as they do in deep networks
      with large support sets.
    - `keep_inner_gradients`: keep the inner gradients too (K times the size of the parameters).
      With `mixed_mode`, the steps that are taken again then cost no gradient.
    - `offload`: what is kept waits in host memory, where the backend has one apart from its own
      (on a CPU it is the same memory).

    Raises `StructureError` for a length below one.
    """

    length: int | None = None
    keep_inner_gradients: bool = False
    offload: bool = False

    def __check_init__(self):
        if self.length is not None:
            check_count("length", self.length, "Segments(length=4)")

    def loop(self, step: InnerStep, state: PyTree, steps: int) -> tuple[PyTree, Any]:
        """See `Checkpoint`."""
        length = self.length or math.isqrt(steps - 1) + 1
        return segments(length, self.keep_inner_gradients, self.offload)(step, state, steps)


class Binomial(Checkpoint):
    r"""A fixed number of inner states, placed anew as the backward pass goes (treeverse).

    Memory: `slots` states and the intermediate values of one step, for any K. Time: with s slots,
    K ≤ (s + r choose s) steps are each taken at most r + 1 times (Griewank 1992; the online form,
    by Stumm and Walther 2010, is Equinox's): s ≈ log₂ K makes r ≈ log₂ K.

    - `slots`: number of states kept

    Raises `StructureError` for less than one slot.
    """

    slots: int

    def __check_init__(self):
        check_count("slots", self.slots, "Binomial(slots=10)")

    def loop(self, step: InnerStep, state: PyTree, steps: int) -> tuple[PyTree, Any]:
        """See `Checkpoint`."""
        return binomial(self.slots)(step, state, steps)


def as_checkpoint(checkpoint: Any) -> Checkpoint:
    """What `Unroll(checkpoint=...)` takes, as a `Checkpoint`."""
    if checkpoint is None:
        return StoreAll()
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    check_count(
        "checkpoint", checkpoint, "Unroll(checkpoint=1), or Unroll(checkpoint=Binomial(10))"
    )
    return Segments(checkpoint)
