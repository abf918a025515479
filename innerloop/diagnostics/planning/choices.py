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
    MixedMode,
    Segments,
    Truncated,
    Unroll,
)
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
        gradients += [Unroll(MixedMode())]
    if steps > 1:
        kept = Segments(1, keep_inner_gradients=True)
        every = Segments(1)
        gradients += [Unroll(loop=every), Unroll(MixedMode(), every), Unroll(MixedMode(), kept)]
    if steps > 3:
        gradients += [Unroll(loop=Segments()), Unroll(MixedMode(), Segments())]
    if steps > _MANY:
        few = Binomial(math.ceil(math.log2(steps)))
        gradients += [Unroll(loop=few), Unroll(MixedMode(), few)]
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
    return gradient.fidelity(adaptation, problem).kind != "undefined"
