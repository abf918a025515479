"""Where a number that is not finite comes from: a program run one operation at a time."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from innerloop.programs import Operation, evaluate


class _Executed(NamedTuple):
    """What made `outputs` of `inputs`: an operation, None where a loop took or stacked rows."""

    operation: Operation | None
    inputs: list[Any]
    outputs: list[Any]


def origin_of_non_finite(function: Callable, *args: PyTree) -> Operation | None:
    """The operation that made numbers that are not finite.

    `function(*args)` is run. From a NaN in its result the search goes back, by whichever input is a
    NaN too, to the operation that made a NaN of none; if that read an infinity, to what made the
    infinity of finite numbers, unless it was written so, as in masks of `-inf`. None where
    everything comes out finite, or what is not was given as such.
    """
    closed = jax.make_jaxpr(function)(*args)
    executed: list[_Executed] = []
    keep = lambda *step: executed.append(_Executed(*step))
    results = evaluate(closed, jax.tree.leaves(args), keep)
    # A value is known by its identity: `executed` keeps all of them alive. Where an operation hands
    # its argument on, it did not make it.
    made_by = {
        id(value): step
        for step in executed
        for value in step.outputs
        if not any(value is given for given in step.inputs)
    }
    of_nan, given = _trace_back(results, made_by, jnp.isnan)
    if given:
        return None
    of_infinity, given = _trace_back(of_nan.inputs if of_nan else results, made_by, jnp.isinf)
    origin = of_nan if given or of_infinity is None else of_infinity
    return origin.operation if origin else None


def _trace_back(values: Sequence, made_by: dict[int, _Executed], is_bad: Callable):
    """What made a bad value of good ones (None: nothing is bad), and whether it was given as bad.

    What was written as bad is a literal or a constant, spread by operations that compute nothing.
    """
    bad = lambda value: _is_inexact(value) and bool(jnp.any(is_bad(value)))
    suspect, origin = next(filter(bad, values), None), None
    while suspect is not None:
        if id(suspect) not in made_by:
            return None, True
        origin = made_by[id(suspect)]
        suspect = next(filter(bad, origin.inputs), None)
    return origin, False


def _is_inexact(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    return isinstance(value, float) or (dtype is not None and jnp.issubdtype(dtype, jnp.inexact))
