"""The two choices that a driver of inner steps leaves open: the inner gradient, and the loop."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import PyTree

from innerloop.arguments import CheckedModule
from innerloop.fidelity import Fidelity
from innerloop.problem import Problem

if TYPE_CHECKING:
    from innerloop.adaptation.base import Adaptation, InnerGradient


@dataclass(frozen=True, eq=False)  # a tuple could not be weakly referenced, as JAX's loops do
class InnerStep:
    """The body of the inner loop: `(state, t) -> (state, output)`, and its two parts.

    Args:
        advance: `(state, t) -> (state, info)`, inner step t
        observe: `(state, t) -> pytree`, what is looked at after t steps
    """

    advance: Callable[..., tuple[PyTree, PyTree]]
    observe: Callable[[PyTree, Any], PyTree]

    def __call__(self, state: PyTree, t: Any) -> tuple[PyTree, Any]:
        state, info = self.advance(state, t)
        return state, (info, self.observe(state, t + 1))

    def after(self, steps: int) -> "InnerStep":
        """The same body for a loop that begins after so many steps and counts from 0 again."""
        first = np.int32(steps)
        return InnerStep(
            lambda state, t: self.advance(state, first + t),
            lambda state, t: self.observe(state, first + t),
        )


class InnerRule(CheckedModule):
    """What the inner gradient is for whoever differentiates through it: a slot of `Unroll`.

    Its numbers are always those of the gradient of the inner loss. A rule decides what becomes of
    its derivatives.

    - `task_by_task`: whether the backward pass depends on the size of what it is given, so that the
      meta-gradient of each task must be taken by itself, before tasks are weighted and summed
    """

    task_by_task: ClassVar[bool] = False

    @abc.abstractmethod
    def at(self, t: Any) -> "InnerGradient":
        """The operator for one inner step, which an adaptation is handed.

        Args:
            t: number of the inner step, from 0. It may be traced.

        Returns:
            `inner_gradient(loss)`, see `InnerGradient`.
        """

    @abc.abstractmethod
    def fidelity(self, adaptation: "Adaptation", problem: Problem | None = None) -> Fidelity:
        """How far the meta-gradient is from the exact one because of this rule."""


class Loop(CheckedModule):
    """How the inner loop keeps and differentiates its steps: a slot of `Unroll`."""

    @abc.abstractmethod
    def __call__(self, step: InnerStep, state: PyTree, steps: int) -> tuple[PyTree, Any]:
        """Apply `step: (state, t) -> (state, output)` for t = 0 ... `steps` - 1.

        Returns:
            The last state, and the outputs stacked along a new first axis.
        """

    @abc.abstractmethod
    def fidelity(self, adaptation: "Adaptation", problem: Problem | None = None) -> Fidelity:
        """How far the meta-gradient is from the exact one because of this loop."""
