"""What an adaptation is: a process with explicit state that asks for its derivatives."""

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

The gradient is with respect to `params`. The meta-gradient estimator hands this operator in, and so
decides what may be differentiated through it: the whole coupling between the two rooms.
"""


class Info(NamedTuple):
    """What one may want to look at after an inner step; the next step does not need it.

    - `loss`: inner loss before the step, scalar
    - `aux`: what the inner loss returned beside it
    """

    loss: Any
    aux: Any


class Origin(enum.Enum):
    """What the adapted parameters come from; which meta-gradients exist depends on it."""

    STEPS = "differentiable steps from the problem's init"
    PROCEDURE = "one differentiable procedure"
    SOLVER = "a solver that runs to convergence, and is not differentiated itself"


class Adaptation(CheckedModule):
    """How one task is learned.

    An adaptation names no gradient and no device: `step` receives an `InnerGradient` and never
    differentiates by itself. Its state holds what the next step needs and nothing else.

    - `steps`: the number K of inner steps; 0 where `init` does it all; None where a single call of
      `step` runs to convergence.
    - `origin`: what the adapted parameters come from
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
        """One inner step: the next state, and what can be told about this one."""

    @abc.abstractmethod
    def params(self, state: PyTree) -> PyTree:
        """The adapted parameters in a state."""
