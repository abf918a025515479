"""The origin of a number that is not finite, found by running a program one operation at a time."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from innerloop.programs import Operation, evaluate


class _Executed(NamedTuple):
    """An operation that was run, with its values; None for a loop that took or stacked rows."""

    operation: Operation | None
    inputs: list[Any]
    outputs: list[Any]


def origin_of_non_finite(function: Callable, *args: PyTree) -> Operation | None:
    """The operation that first produced numbers that are not finite.

    `function(*args)` is run. From a NaN in its result, the search follows inputs that are NaN back
    to the operation that produced a NaN from inputs without one. If an input of that operation was
    infinite, the search continues to the operation that produced the infinity from finite numbers,
    unless the infinity was a constant, as in masks of `-inf`.

    Returns:
        The operation. None if all results are finite, or if the numbers that are not finite were
        given as inputs.
    """
    closed = jax.make_jaxpr(function)(*args)
    executed: list[_Executed] = []
    keep = lambda *step: executed.append(_Executed(*step))
    results = evaluate(closed, jax.tree.leaves(args), keep)
    # Values are identified by `id`, which is safe because `executed` keeps all of them alive. An
    # operation that returns its own argument did not produce it.
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
    """The step that produced a bad value from good ones (None if nothing is bad), and whether a bad
    value was an input, a literal or a constant.
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
