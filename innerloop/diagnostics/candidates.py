"""The meta-gradients and chunk sizes that `compare` and `plan` try."""

import math
from typing import Any

from jaxtyping import PyTree

from innerloop.adaptation import Adaptation
from innerloop.gradients import (
    Binomial,
    EvolutionStrategies,
    FirstOrder,
    ForwardMode,
    Implicit,
    MetaGradient,
    MixedMode,
    RandomDirections,
    Reptile,
    Segments,
    Truncated,
    Unroll,
)
from innerloop.problem import Problem
from innerloop.trees import number_count

_MANY = 16
"""Inner steps above which keeping a fixed number of states can be worthwhile."""


def exact_gradient(adaptation: Any) -> MetaGradient:
    """An exact meta-gradient for this adaptation; `Unroll()` for what is no adaptation."""
    solved = isinstance(adaptation, Adaptation) and not _exists(Unroll(), None, adaptation)
    return Implicit() if solved else Unroll()


def one_of_every_kind(adaptation: Adaptation, meta: PyTree) -> list[MetaGradient]:
    """One meta-gradient of every kind, and all settings of `Unroll` that differ for this number of
    steps.

    The list includes those that do not exist for the pair, so that the comparison shows the reason.
    Directions and pairs are computed one at a time, because the available memory is not known.
    """
    steps = adaptation.steps or 0
    few = number_count(meta) <= 64  # one tangent per meta-parameter is affordable
    gradients = [
        (True, Unroll()),
        (steps == 1, Unroll(MixedMode())),  # every loop keeps a single step whole
        (steps > 1, Unroll(loop=Segments(1))),
        (steps > 1, Unroll(MixedMode(), Segments(1))),
        (steps > 2, Unroll(loop=Segments())),
        (steps >= _MANY, Unroll(loop=_few_states(steps))),
        (True, Implicit()),
        (few, ForwardMode()),
        (not few, ForwardMode(RandomDirections(16), chunk=1)),
        (True, EvolutionStrategies(16, 0.01, chunk=1)),
        (steps > 1, Truncated(steps // 2)),
        (True, FirstOrder()),
        (True, Reptile()),
    ]
    return [gradient for differs, gradient in gradients if differs]


def exact_gradients(problem: Problem, adaptation: Adaptation, meta: PyTree) -> list[MetaGradient]:
    """The settings that give the exact meta-gradient, from the fastest to the one that keeps the
    least.

    `Implicit` is included only if nothing else exists: otherwise it is exact at an optimum that
    need not be reached.
    """
    steps = adaptation.steps or 0
    few = number_count(meta) <= 32  # one tangent per meta-parameter may be fast enough
    gradients = [
        (steps > 0, Unroll(MixedMode())),
        (True, Unroll()),
        (steps > 1, Unroll(MixedMode(), Segments(1, keep_inner_gradients=True))),
        (steps > 1, Unroll(MixedMode(), Segments(1))),
        (steps > 1, Unroll(loop=Segments(1))),
        (steps > 3, Unroll(MixedMode(), Segments())),
        (steps > 3, Unroll(loop=Segments())),
        (steps > _MANY, Unroll(MixedMode(), _few_states(steps))),
        (steps > _MANY, Unroll(loop=_few_states(steps))),
        (few, ForwardMode()),
        (few, ForwardMode(chunk=1)),
    ]
    pays = [gradient for pays, gradient in gradients if pays]
    return [each for each in pays if _exists(each, problem, adaptation)] or [Implicit()]


def _few_states(steps: int) -> Binomial:
    return Binomial(math.ceil(math.log2(max(steps, 2))))


def biased_gradients(problem: Problem, adaptation: Adaptation) -> list[MetaGradient]:
    """Meta-gradients that drop half of the steps, three quarters ..., all second derivatives."""
    steps = adaptation.steps or 0
    lasts = [steps >> halvings for halvings in range(1, steps.bit_length())]
    gradients = [*map(Truncated, lasts), *[FirstOrder()] * (steps > 0)]
    return [gradient for gradient in gradients if _exists(gradient, problem, adaptation)]


def chunk_sizes(tasks: int) -> list[int]:
    """How many tasks to run at a time: all tasks, about half of them, about a quarter ..., one.

    A nearby size that divides the batch is preferred, because padding copies the batch.
    """
    sizes = set()
    for i in range(tasks.bit_length() + 1):
        size = math.ceil(tasks / 2**i)
        divisors = (n for n in range(size, math.ceil(size / 2), -1) if tasks % n == 0)
        sizes.add(next(divisors, size))
    return sorted(sizes, reverse=True)


def _exists(gradient: MetaGradient, problem: Problem | None, adaptation: Adaptation) -> bool:
    return gradient.fidelity(adaptation, problem).kind != "undefined"
