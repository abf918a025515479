"""Whether a function gives the same program each time it is traced."""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import CellType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jax.extend import core
from jaxtyping import PyTree

from innerloop.programs.operations import Operation
from innerloop.trees import key_numbers

_TRACE = jax.make_user_context("first")
"""A part of the key of JAX's trace caches: a jitted function is traced again for another value."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None), np.ndarray, np.generic, np.dtype)
"""The types of parameters that are compared; others are functions, programs or source lines."""

_NUMBERS = (*_PLAIN, jax.Array)
_DEEPEST = 8
"""How deep functions in functions are compared; one may hold itself."""


class Difference(NamedTuple):
    """Where two programs differ: an operation, or None if they have no operation to name."""

    operation: Operation | None


class _Open(NamedTuple):
    """A program whose constants are passed by the operation that holds it."""

    jaxpr: core.Jaxpr
    consts: tuple[Any, ...] = ()


def traced_anew() -> AbstractContextManager:
    """A context in which JAX does not reuse earlier traces, including those of jitted functions."""
    return _TRACE("again")


def difference_between_traces(function: Callable, *args: PyTree) -> Difference | None:
    """The first difference between two traces of a function; None if there is none.

    Nothing is run. A generator, an iterator or a counter on the host is read in both traces, so the
    traces differ in a constant.
    """
    return traced_twice(function, *args).difference


class Traced(NamedTuple):
    """Two traces of a function.

    Args:
        program: The first trace, a function of arguments with the same shapes and dtypes. A
            function that calls it is not traced through the original function again.
        shapes: The shapes and dtypes of what it returns.
        difference: The first difference between the traces; None if there is none.
    """

    program: Callable[..., PyTree]
    shapes: PyTree
    difference: Difference | None


def traced_twice(function: Callable, *args: PyTree) -> Traced:
    """Trace a function of arrays twice; nothing is run."""
    trace = jax.make_jaxpr(lambda *args: function(*args), return_shape=True)
    first, shapes = trace(*args)
    try:
        with traced_anew():
            second, _ = trace(*args)
        found = difference(first, second)
    except Exception:  # an iterator on the host, for example, has ended
        found = Difference(None)
    flat, treedef = core.jaxpr_as_fun(first), jax.tree.structure(shapes)
    program = lambda *args: jax.tree.unflatten(treedef, flat(*jax.tree.leaves(args)))
    return Traced(program, shapes, found)


def difference(a: core.ClosedJaxpr, b: core.ClosedJaxpr) -> Difference | None:
    """The first difference of two programs, in what they compute or in their constants."""
    return next(_differences(a, b, ()), None)


def _differences(
    a: core.ClosedJaxpr | _Open, b: core.ClosedJaxpr | _Open, callers: tuple[core.JaxprEqn, ...]
) -> Iterator[Difference]:
    mine, others = a.jaxpr.eqns, b.jaxpr.eqns
    same = dict(zip(_inputs(a), _inputs(b), strict=False))
    match = lambda one, other: (
        _equal(one.val, other.val)
        if isinstance(one, core.Literal) and isinstance(other, core.Literal)
        else not isinstance(one, core.Literal) and same.get(one) is other
    )
    for variable, one, other in zip(a.jaxpr.constvars, a.consts, b.consts, strict=False):
        if not _equal(one, other):
            readers = (eqn for eqn in mine if any(atom is variable for atom in eqn.invars))
            yield _at(next(readers, None), callers)
    for one, other in zip(mine, others, strict=False):
        if one.primitive is not other.primitive or not (
            _all(match, one.invars, other.invars)
            and _same_parameters(one.params, other.params)
            and _same_callback(one, other)
        ):
            yield _at(one, callers)
        for held, again in zip(_held(one), _held(other), strict=False):
            yield from _differences(held, again, (one, *callers))
        same.update(zip(one.outvars, other.outvars, strict=False))
    if len(mine) != len(others) or len(a.consts) != len(b.consts):
        yield _at((max(mine, others, key=len) or [None])[-1], callers)
    if not _all(match, a.jaxpr.outvars, b.jaxpr.outvars):
        yield _at((mine or [None])[-1], callers)


def _inputs(program: core.ClosedJaxpr | _Open) -> list:
    return [*program.jaxpr.constvars, *program.jaxpr.invars]


def _at(eqn: core.JaxprEqn | None, callers: tuple[core.JaxprEqn, ...]) -> Difference:
    if eqn is None:
        return Difference(Operation(callers[0], callers[1:]) if callers else None)
    return Difference(Operation(eqn, callers))


def _all(match: Callable, ones: Any, others: Any) -> bool:
    return len(ones) == len(others) and all(map(match, ones, others))


def _same_parameters(mine: dict[str, Any], others: dict[str, Any]) -> bool:
    return mine.keys() == others.keys() and all(
        _same(value, others[name]) for name, value in mine.items()
    )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return _all(_same, one, other)
    return not (isinstance(one, _PLAIN) and isinstance(other, _PLAIN)) or _equal(one, other)


def _same_callback(one: core.JaxprEqn, other: core.JaxprEqn) -> bool:
    """Whether two calls of the host, if they return anything, hold the same numbers."""
    mine, others = (eqn.params.get("callback") if eqn.outvars else None for eqn in (one, other))
    of = lambda callback: getattr(callback, "callback_func", callback)
    return _same_function(of(mine), of(others))


def _same_function(one: Any, other: Any, depth: int = 0) -> bool:
    """Whether two functions of the host hold the same numbers, as far as Python shows them.

    Text is not compared: a function that raises an error holds the lines that led to it, and a
    trace that JAX has kept was reached by more or fewer of them.
    """
    if isinstance(one, _NUMBERS) or isinstance(other, _NUMBERS):
        return _equal(one, other)
    if one is other or depth == _DEEPEST:
        return True
    deeper = functools.partial(_same_function, depth=depth + 1)
    no_text = lambda held: [each for each in _values_of(held) if not isinstance(each, str | bytes)]
    return _all(deeper, no_text(one), no_text(other))


def _values_of(function: Any) -> list[Any]:
    """The values that a function, or a container in it, holds."""
    if isinstance(function, list | tuple):
        return [*function]
    if isinstance(function, functools.partial):
        return [function.func, *function.args, *function.keywords.values()]
    cells = getattr(function, "__closure__", None) or ()
    defaults = getattr(function, "__defaults__", None) or ()
    filled = [cell for cell in cells if cell != CellType()]
    return [*(cell.cell_contents for cell in filled), *defaults]


def _held(eqn: core.JaxprEqn) -> Iterator[core.ClosedJaxpr | _Open]:
    """The programs that an operation holds."""
    for value in eqn.params.values():
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, core.Jaxpr):
                yield _Open(each)
            elif isinstance(each, core.ClosedJaxpr):
                yield each


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tracer) or isinstance(other, Tracer):
        return False
    with jax.ensure_compile_time_eval():  # also while an outer function is traced
        one, other = (np.asarray(key_numbers(each)) for each in (one, other))
    alike = (one.shape, one.dtype) == (other.shape, other.dtype)
    return alike and (one.dtype == object or one.tobytes() == other.tobytes())
