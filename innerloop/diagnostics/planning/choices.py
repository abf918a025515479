"""Which meta-gradients and how many tasks at a time `plan` tries, in which order."""

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
"""Meta-parameters up to which one tangent for each may be worth its time."""

_MANY = 16
"""Inner steps above which a fixed number of kept states can pay."""


def exact_gradients(problem: Problem, adaptation: Adaptation, meta: PyTree) -> list[MetaGradient]:
    """The ways to the exact meta-gradient, from the fastest on to those that keep less and less.

    `Implicit` is among them only where nothing else exists: elsewhere it is exact at an optimum
    that need not be reached.
    """
    steps = adaptation.steps or 0
    unrolled: list[MetaGradient] = [Unroll(MixedMode())] if steps > 0 else []
    unrolled += [Unroll()]
    if steps > 1:
        unrolled += [Unroll(MixedMode(), Segments(1, keep_inner_gradients=True))]
        unrolled += [Unroll(MixedMode(), Segments(1)), Unroll(loop=Segments(1))]
    if steps > 3:
        unrolled += [Unroll(MixedMode(), Segments()), Unroll(loop=Segments())]
    if steps > _MANY:
        few = Binomial(math.ceil(math.log2(steps)))
        unrolled += [Unroll(MixedMode(), few), Unroll(loop=few)]
    if number_count(meta) <= _FEW:
        unrolled += [ForwardMode(), ForwardMode(chunk=1)]
    valid = [gradient for gradient in unrolled if _exists(gradient, problem, adaptation)]
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


def chunk_sizes(tasks: int) -> list[int]:
    """How many tasks to run at a time: all tasks, about half of them, about a quarter ..., one.

    Sizes that divide the batch are taken where there is one near, because padding copies it.
    """
    sizes = set()
    for i in range(tasks.bit_length() + 1):
        size = math.ceil(tasks / 2**i)
        divisors = (n for n in range(size, math.ceil(size / 2), -1) if tasks % n == 0)
        sizes.add(next(divisors, size))
    return sorted(sizes, reverse=True)


def _exists(gradient: MetaGradient, problem: Problem, adaptation: Adaptation) -> bool:
    return gradient.fidelity(adaptation, problem).kind != "undefined"
