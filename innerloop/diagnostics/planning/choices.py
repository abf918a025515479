"""Which meta-gradients `plan` chooses from."""

import math

from jaxtyping import PyTree

from innerloop.adaptation import Adaptation
from innerloop.gradients import (
    Binomial,
    FirstOrder,
    ForwardMode,
    Implicit,
    MetaGradient,
    Segments,
    Truncated,
    Unroll,
)
from innerloop.gradients.validity import refusal
from innerloop.problem import Problem
from innerloop.trees import number_count

_FEW = 32
"""Meta-parameters up to which one tangent for each is worth a trace."""

_MANY = 16
"""Inner steps above which a fixed number of kept states can pay."""


def exact_gradients(problem: Problem, adaptation: Adaptation, meta: PyTree) -> list[MetaGradient]:
    """Every way to the exact meta-gradient that exists for the pair and differs from the others.

    `Implicit` is among them only where nothing else exists: elsewhere it is exact at an optimum
    that need not be reached.
    """
    steps = adaptation.steps or 0
    gradients: list[MetaGradient] = [Unroll()]
    if steps > 0:
        gradients += [Unroll(mixed_mode=True)]
    if steps > 1:
        kept = Segments(1, keep_inner_gradients=True)
        gradients += [Unroll(1), Unroll(1, mixed_mode=True), Unroll(kept, mixed_mode=True)]
    if steps > 3:
        gradients += [Unroll(Segments()), Unroll(Segments(), mixed_mode=True)]
    if steps > _MANY:
        few = Binomial(math.ceil(math.log2(steps)))
        gradients += [Unroll(few), Unroll(few, mixed_mode=True)]
    if number_count(meta) <= _FEW:
        gradients += [ForwardMode(), ForwardMode(chunk=1)]
    valid = [gradient for gradient in gradients if _exists(gradient, problem, adaptation)]
    return valid or [Implicit()]


def biased_gradients(problem: Problem, adaptation: Adaptation) -> list[MetaGradient]:
    """Ways that drop something: half of the steps, a quarter ..., all second derivatives."""
    last, gradients = (adaptation.steps or 0) // 2, []
    while last > 0:
        gradients.append(Truncated(last))
        last //= 2
    if adaptation.steps:
        gradients.append(FirstOrder())
    return [gradient for gradient in gradients if _exists(gradient, problem, adaptation)]


def _exists(gradient: MetaGradient, problem: Problem, adaptation: Adaptation) -> bool:
    return refusal(gradient, problem, adaptation) is None
