"""The meta-gradients worth trying on a pair of problem and adaptation, and what each is called."""

import dataclasses
import math
from typing import Any

import equinox as eqx
from jaxtyping import PyTree

from innerloop.adaptation import Adaptation
from innerloop.checks import describe
from innerloop.gradients import (
    Binomial,
    EvolutionStrategies,
    FirstOrder,
    ForwardMode,
    Implicit,
    MetaGradient,
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
        unrolled += [Unroll(mixed_mode=True)]
    if steps > 1:
        unrolled += [Unroll(checkpoint=1), Unroll(checkpoint=1, mixed_mode=True)]
    if steps > 2:
        unrolled += [Unroll(checkpoint=Segments())]
    if steps >= _MANY:
        unrolled += [Unroll(checkpoint=Binomial(math.ceil(math.log2(steps))))]
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


def gradient_name(gradient: Any) -> str:
    """An estimator as one would write it: `Unroll(checkpoint=Segments(), mixed_mode=True)`."""
    if isinstance(gradient, eqx.Module):
        return f"{type(gradient).__name__}({', '.join(_arguments(gradient))})"
    if callable(gradient):
        return getattr(gradient, "__name__", type(gradient).__name__)
    return describe(gradient)


def _arguments(module: eqx.Module) -> list[str]:
    """Those at their default left out; leading ones that need no name to be understood without."""
    arguments, leading = [], True
    for field in dataclasses.fields(module):
        value = getattr(module, field.name, None)
        if not field.init or _is_default(field, value):
            leading = False
            continue
        required = field.default is field.default_factory is dataclasses.MISSING
        leading = leading and (required or isinstance(value, eqx.Module))
        arguments.append(("" if leading else f"{field.name}=") + gradient_name(value))
    return arguments


def _is_default(field: dataclasses.Field, value: Any) -> bool:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    return type(value) is type(default) and bool(eqx.tree_equal(value, default))
