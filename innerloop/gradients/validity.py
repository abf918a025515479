"""Which meta-gradient exists after which adaptation: one table for refusals, laws and docs."""

from typing import NamedTuple

from innerloop.adaptation import Adaptation, Origin
from innerloop.errors import GradientError
from innerloop.gradients.base import MetaGradient
from innerloop.gradients.bounded import Bounded
from innerloop.gradients.clipped import without_clips
from innerloop.gradients.first_order import FirstOrder
from innerloop.gradients.forward_mode import ForwardMode
from innerloop.gradients.implicit import Implicit
from innerloop.gradients.reptile import Reptile
from innerloop.gradients.truncated import Truncated
from innerloop.gradients.unroll import Unroll
from innerloop.problem import Problem


class Refusal(NamedTuple):
    """Why a pair has no meta-gradient, and what to use instead."""

    reason: str
    write: str


_SOLVER = Refusal(
    "the way of a solver that runs to convergence is not differentiated",
    "Implicit(), which differentiates the solution",
)

REFUSALS: dict[tuple[type[MetaGradient], Origin], Refusal] = {
    (Unroll, Origin.SOLVER): _SOLVER,
    (Bounded, Origin.SOLVER): _SOLVER,
    (FirstOrder, Origin.SOLVER): _SOLVER,
    (Truncated, Origin.SOLVER): _SOLVER,
    (ForwardMode, Origin.SOLVER): _SOLVER,
    (Implicit, Origin.PROCEDURE): Refusal(
        "a procedure need not end where the gradient of the inner loss vanishes",
        "Unroll(), which is exact, or Implicit(condition=...) with the condition that it solves",
    ),
    (Reptile, Origin.PROCEDURE): Refusal(
        "a procedure has no initial parameters to move",
        "Unroll()",
    ),
}
"""Every other pair is valid."""


_STEP_WEIGHTS = Refusal(
    "step_weights ask for losses on the way to the optimum, and only the optimum is differentiated",
    "Unroll(), or a Problem without step_weights",
)


def refusal(gradient: MetaGradient, problem: Problem, adaptation: Adaptation) -> Refusal | None:
    """What stands against this pair; None where it is valid."""
    gradient = without_clips(gradient)
    if isinstance(gradient, Implicit):
        if problem.step_weights is not None:
            return _STEP_WEIGHTS
        if gradient.condition is not None:
            return None
    return REFUSALS.get((type(gradient), adaptation.origin))


def require_valid(gradient: MetaGradient, problem: Problem, adaptation: Adaptation) -> None:
    """Raise `GradientError` for a pair that has no meta-gradient."""
    against = refusal(gradient, problem, adaptation)
    if against is None:
        return
    raise GradientError(
        f"{type(gradient).__name__} does not exist after {type(adaptation).__name__}: "
        f"{against.reason}",
        got=f"{type(gradient).__name__} with {type(adaptation).__name__}",
        expected="a pair with a meta-gradient",
        write=against.write,
    )
