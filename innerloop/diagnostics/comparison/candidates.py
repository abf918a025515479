"""The meta-gradients worth trying on a pair of problem and adaptation."""

import math

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
from innerloop.trees import number_count

_FEW = 64
"""Meta-parameters up to which one tangent each is affordable."""

_MANY = 16
"""Inner steps from which a fixed number of kept states is worth its time."""


def candidates(adaptation: Adaptation, meta: PyTree) -> list[MetaGradient]:
    """One of every kind of estimator, and of `Unroll` all that differ for this number of steps.

    Those that do not exist for the pair are among them: why not is worth knowing too. What is
    computed many times over (directions, pairs) is computed one at a time, because the room for
    more is not known.
    """
    steps = adaptation.steps or 0
    unrolled: list[MetaGradient] = [Unroll()]
    if steps == 1:  # one step is kept whole whatever the checkpoint
        unrolled += [Unroll(MixedMode())]
    if steps > 1:
        unrolled += [Unroll(loop=Segments(1)), Unroll(MixedMode(), Segments(1))]
    if steps > 2:
        unrolled += [Unroll(loop=Segments())]
    if steps >= _MANY:
        unrolled += [Unroll(loop=Binomial(math.ceil(math.log2(steps))))]
    few = number_count(meta) <= _FEW
    return [
        *unrolled,
        Implicit(),
        ForwardMode() if few else ForwardMode(RandomDirections(16), chunk=1),
        EvolutionStrategies(16, 0.01, chunk=1),
        *([Truncated(steps // 2)] if steps > 1 else []),
        FirstOrder(),
        Reptile(),
    ]
