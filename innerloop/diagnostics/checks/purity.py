"""Functions that are not pure: they change Python state, or draw random numbers outside JAX."""

import contextlib
import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from innerloop.diagnostics.checks.source import is_library, place_of
from innerloop.diagnostics.checks.subject import Subject, jit_quickly
from innerloop.diagnostics.findings import Finding, Severity
from innerloop.programs import difference, traced_anew

_MOST_OBJECTS = 10_000
"""The largest number of objects that are searched per function."""
_NUMBERS = (bool, int, float, complex, str, bytes, type(None))


class _Held(NamedTuple):
    """A mutable object, the path from the function to it, and its previous contents."""

    name: str
    owner: Any
    before: dict[Any, Any]


def captured_state(subject: Subject) -> Iterator[Finding]:
    """Mutable values that the user's functions hold and change while they are traced.

    The search covers closures, the globals that a function names, defaults, attributes of
    functions, of bound methods' objects and of `functools.partial`, and the contents of all of
    these.
    """
    functions = {
        **{name: getattr(subject.problem, name) for name in ("init", "inner_loss", "outer_loss")},
        **{name: getattr(subject.adaptation, name, None) for name in ("optimizer", "fn")},
    }
    held = {name: _held(function) for name, function in functions.items()}
    with contextlib.suppress(Exception):  # another check reports why tracing fails
        subject.trace_loss()
    for function, owners in held.items():
        for name, owner, before in owners:
            changed = _changed(owner, before)
            if changed:
                what = name
                if not isinstance(owner, list | dict | set | np.ndarray):
                    what = ", ".join(_name(name, owner, part) for part in changed)
                place = f"{function}, {type(owner).__name__}"
                yield _finding(f"{function} changes {what}", place, list(changed.values()))


def same_program(subject: Subject) -> Iterator[Finding]:
    """Checks that two traces of the losses give the same program."""
    if subject.missing is not None:  # another check reports why tracing fails
        return
    first = subject.program
    with traced_anew():
        found = difference(first, subject.trace_loss())
    if found is not None:
        yield Finding(
            Severity.ERROR,
            "the losses are a different function each time they are traced",
            place_of(found),
            "a number from the host is drawn or read during tracing, and is then a constant of "
            "the compiled program",
            "jax.random with the key that the function is given",
        )


def repeatable(subject: Subject) -> Iterator[Finding]:
    """Checks that two runs give the same bits."""
    objective, task = subject.objective(subject.exact), subject.task()
    run = jit_quickly(lambda meta: objective(meta, *task)[0])
    values = [np.asarray(run(subject.meta)) for _ in range(2)]
    if values[0].tobytes() != values[1].tobytes():
        yield Finding(
            Severity.ERROR,
            "the same key gives a different loss each time",
            "the meta-objective",
            f"{values[0]} and then {values[1]}: a callback to the host draws random numbers or "
            "keeps state",
            "jax.random with the key that the function is given",
        )


def _finding(problem: str, place: str, changed: Any) -> Finding:
    severity, effect = Severity.WARNING, "not at every step"
    cure = "jax.debug.callback to count or to log, or the value in aux"
    if _has_tracer(changed):
        severity, effect = Severity.ERROR, "and leaves tracers in them"
        cure = "the value as a part of params, meta or aux, returned instead of stored"
    cause = "a function is traced once and then run as compiled: what it does to Python objects "
    return Finding(severity, problem, place, f"{cause}happens only during tracing, {effect}", cure)


def _held(function: Any) -> list[_Held]:
    """The mutable objects that a function can reach, each with a shallow copy of its contents."""
    found: list[_Held] = []
    seen: set[int] = set()
    queue = [("", function)]
    while queue and len(seen) < _MOST_OBJECTS:
        name, value = queue.pop(0)
        if id(value) in seen or isinstance(value, (*_NUMBERS, jax.Array, types.ModuleType, type)):
            continue
        seen.add(id(value))
        inside = _inside(value)
        if _is_mutable(value):
            found.append(_Held(name, value, inside))
        queue += [(_name(name, value, part), each) for part, each in inside.items()]
    return found


def _name(name: str, owner: Any, part: Any) -> str:
    if isinstance(part, str) and (part.startswith(".") or inspect.isfunction(owner)):
        return (name + part if part.startswith(".") else part).removeprefix(".")
    if not name:
        return f"argument {part}"
    return f"{name}[{part!r}]"


def _inside(value: Any) -> dict[Any, Any]:
    """The contents of a value by name: variables of a function, items, attributes."""
    if isinstance(value, functools.partial):
        return {".func": value.func, **value.keywords, **dict(enumerate(value.args))}
    if inspect.ismethod(value):
        return {".self": value.__self__, ".function": value.__func__}
    if inspect.isfunction(value):
        return _variables(value)
    if isinstance(value, dict):
        return dict(dict.items(value))
    if isinstance(value, list | tuple | set | frozenset):
        return dict(enumerate(value))
    if isinstance(value, np.ndarray):
        return {"bytes": value.tobytes()} if value.dtype != object else {}
    if is_library(type(value).__module__):
        return {}
    return {f".{name}": each for name, each in getattr(value, "__dict__", {}).items()}


def _variables(function: types.FunctionType) -> dict[str, Any]:
    if is_library(function.__module__ or ""):
        return {}
    variables = {f".{name}": value for name, value in vars(function).items()}
    names = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    for name, cell in names:
        with contextlib.suppress(ValueError):  # a variable that has no value yet
            variables[name] = cell.cell_contents
    for name in function.__code__.co_names:
        if name in function.__globals__:
            variables[name] = function.__globals__[name]
    return variables | dict(enumerate(function.__defaults__ or ()))  # pyright: ignore


def _is_mutable(value: Any) -> bool:
    if isinstance(value, tuple | frozenset | functools.partial | types.MethodType):
        return False
    return isinstance(value, list | dict | set | np.ndarray) or hasattr(value, "__dict__")


def _changed(owner: Any, before: dict[Any, Any]) -> dict[Any, Any]:
    """The contents of an object that are new, changed or gone.

    A new attribute or key without a tracer counts as a cache, such as `functools.cached_property`,
    and is left out.
    """
    now = _inside(owner)
    grows = isinstance(owner, list | set)
    changed = {
        name: value
        for name, value in now.items()
        if (name in before and not _same(value, before[name]))
        or (name not in before and (grows or _has_tracer(value)))
    }
    return changed | dict.fromkeys(before.keys() - now.keys())


def _same(one: Any, two: Any) -> bool:
    return one is two or (isinstance(one, _NUMBERS) and type(one) is type(two) and one == two)


def _has_tracer(value: Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value))
