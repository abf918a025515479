"""The interfaces of adaptations, and of the inner rules and loops that run their steps."""

import abc
import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree, Scalar

from innerloop.arguments import CheckedModule
from innerloop.fidelity import Fidelity
from innerloop.problem import Loss, Problem

InnerGradient = Callable[[Loss], Callable[..., tuple[tuple[Scalar, PyTree], PyTree]]]
"""`inner_gradient(loss)` returns `(params, meta, batch, key) -> ((value, aux), gradient)`.

The gradient is with respect to `params`. The meta-gradient provides this operator and so decides
what is differentiated through it. Adaptations and meta-gradients are coupled in no other way.
"""


class Info(NamedTuple):
    """A report of one inner step, which the next step does not need.

    Args:
        loss: The inner loss before the step, a scalar.
        aux: The auxiliary output of the inner loss.
    """

    loss: Any
    aux: Any


class Origin(enum.Enum):
    """How the adapted parameters are computed, which decides which meta-gradients exist."""

    STEPS = "differentiable steps from the problem's init"
    PROCEDURE = "one differentiable procedure"
    SOLVER = "a solver that runs to convergence, and is not differentiated itself"


class Adaptation(CheckedModule):
    """How one task is learned.

    An adaptation names no gradient and no device: `step` receives an `InnerGradient` and never
    differentiates by itself. Its state holds what the next step needs and nothing else.

    Attributes:
        steps: The number K of inner steps; 0 if `init` computes the result; None if a single call
            of `step` runs to convergence.
        origin: How the adapted parameters are computed.
    """

    if TYPE_CHECKING:  # type checkers would count the abstract variable as the first argument
        steps: ClassVar[int | None]
        origin: ClassVar[Origin]
    else:
        steps: eqx.AbstractVar[int | None]
        origin: eqx.AbstractVar[Origin]

    @abc.abstractmethod
    def init(self, problem: Problem, meta: PyTree, support: PyTree, key: PRNGKeyArray) -> PyTree:
        """State before the first step."""

    @abc.abstractmethod
    def step(
        self,
        problem: Problem,
        meta: PyTree,
        support: PyTree,
        state: PyTree,
        key: PRNGKeyArray,
        inner_gradient: InnerGradient,
    ) -> tuple[PyTree, Any]:
        """One inner step.

        Args:
            problem: What is optimised.
            meta: The meta-parameters.
            support: The support set, or the rows of it that the step sees.
            state: The state before the step.
            key: The key of the step.
            inner_gradient: The operator that computes the inner gradient.

        Returns:
            `(state, info)`: the state after the step, and a report of the step.
        """

    @abc.abstractmethod
    def params(self, state: PyTree) -> PyTree:
        """The adapted parameters in a state."""


@dataclass(frozen=True, eq=False)  # JAX's loops need a weak reference, which tuples lack
class InnerStep:
    """The body of the inner loop, `(state, t) -> (state, output)`, and its two parts.

    Args:
        advance: `(state, t) -> (state, info)`, inner step t.
        observe: `(state, t) -> pytree`, the observation after t steps.
    """

    advance: Callable[..., tuple[PyTree, PyTree]]
    observe: Callable[[PyTree, Any], PyTree]

    def __call__(self, state: PyTree, t: Any) -> tuple[PyTree, Any]:
        state, info = self.advance(state, t)
        return state, (info, self.observe(state, t + 1))

    def after(self, steps: int) -> "InnerStep":
        """The same body for a loop that starts after `steps` steps and counts from 0 again."""
        first = np.int32(steps)
        return InnerStep(
            lambda state, t: self.advance(state, first + t),
            lambda state, t: self.observe(state, first + t),
        )


class InnerRule(CheckedModule):
    """How the inner gradient is differentiated: the argument `inner` of `Unroll`.

    Its values are always those of the gradient of the inner loss. A rule defines only the
    derivatives of that gradient.

    Attributes:
        task_by_task: Whether the backward pass depends on the size of its cotangent, so that the
            meta-gradient of each task must be computed separately, before tasks are weighted and
            summed.
    """

    task_by_task: ClassVar[bool] = False

    @abc.abstractmethod
    def at(self, t: Any) -> InnerGradient:
        """The operator for one inner step, which the adaptation receives.

        Args:
            t: The number of the inner step, from 0. It may be traced.

        Returns:
            `inner_gradient(loss)`, see `InnerGradient`.
        """

    @abc.abstractmethod
    def fidelity(self, adaptation: Adaptation, problem: Problem | None = None) -> Fidelity:
        """How far the meta-gradient is from the exact one because of this rule."""


class Loop(CheckedModule):
    """How the inner steps are kept and differentiated: the argument `loop` of `Unroll`."""

    @abc.abstractmethod
    def __call__(self, step: InnerStep, state: PyTree, steps: int) -> tuple[PyTree, Any]:
        """Apply `step: (state, t) -> (state, output)` for t = 0 ... `steps` - 1.

        Args:
            step: The body of the loop.
            state: The state before the first step.
            steps: The number of steps.

        Returns:
            The last state, and the outputs stacked along a new first axis.
        """

    @abc.abstractmethod
    def fidelity(self, adaptation: Adaptation, problem: Problem | None = None) -> Fidelity:
        """How far the meta-gradient is from the exact one because of this loop."""
