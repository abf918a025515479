"""The interface of adaptations: a process with explicit state that is handed its derivatives."""

import abc
import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import equinox as eqx
from jaxtyping import PRNGKeyArray, PyTree, Scalar

from innerloop.arguments import CheckedModule
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
