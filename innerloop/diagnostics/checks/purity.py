"""Randomness and state that JAX does not see: a function traced twice must be the same twice."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from innerloop.diagnostics.checks.source import written_at
from innerloop.diagnostics.checks.subject import Subject, jit_quickly
from innerloop.diagnostics.findings import Finding, Severity
from innerloop.programs import operations


def captured_state(subject: Subject) -> Iterator[Finding]:
    """Mutable values that the user's functions close over and change while they are traced."""
    functions = {
        "init": subject.problem.init,
        "inner_loss": subject.problem.inner_loss,
        "outer_loss": subject.problem.outer_loss,
        **{name: getattr(subject.adaptation, name, None) for name in ("optimizer", "fn")},
    }
    before = {
        (function, name): _copy(value)
        for function, given in functions.items()
        for name, value in _captured(given)
    }
    with contextlib.suppress(Exception):  # why it cannot be traced is another check's to say
        subject.trace_loss()
    for function, given in functions.items():
        for name, value in _captured(given):
            if (function, name) in before and not _same(before[function, name], value):
                yield Finding(
                    Severity.ERROR,
                    f"{function} changes {name}, which it closes over",
                    f"{function}, {name}: {type(value).__name__}",
                    "a function is traced once and then run as compiled: what it does to Python "
                    "objects happens at tracing alone, and leaves tracers in them",
                    "the value as a part of params, meta or aux, returned in place of stored",
                )


def repeatable(subject: Subject) -> Iterator[Finding]:
    """Two traces are one program, and two runs of it give the same bits."""
    first, second = subject.program, subject.trace_loss()
    place = _difference(first, second)
    if place is not None:
        yield Finding(
            Severity.ERROR,
            "the losses are another function each time they are traced",
            place,
            "a number of the host is drawn or read while tracing, and stays as it was then in "
            "the compiled program",
            "jax.random with the key that the function is given",
        )
    objective, task = subject.objective(subject.exact), subject.task()
    run = jit_quickly(lambda meta: objective(meta, *task)[0])
    values = [np.asarray(run(subject.meta)) for _ in range(2)]
    if values[0].tobytes() != values[1].tobytes():
        yield Finding(
            Severity.ERROR,
            "the same key gives another loss each time",
            "the meta-objective",
            f"{values[0]} and then {values[1]}: a callback to the host draws random numbers or "
            "keeps state",
            "jax.random with the key that the function is given",
        )


def _captured(function: Any) -> Iterator[tuple[str, Any]]:
    function = inspect.unwrap(function) if callable(function) else function
    function = getattr(function, "__func__", function)
    if not inspect.isfunction(function):
        return
    variables = inspect.getclosurevars(function)
    for name, value in {**variables.nonlocals, **variables.globals}.items():
        if _is_state(value):
            yield name, value


def _is_state(value: Any) -> bool:
    return isinstance(value, list | dict | set | int | float | np.ndarray)


def _copy(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    return type(value)(value)


def _same(before: Any, now: Any) -> bool:
    if isinstance(before, np.ndarray):
        return np.array_equal(before, now, equal_nan=True)
    if isinstance(before, list):
        return len(before) == len(now) and all(a is b for a, b in zip(before, now, strict=True))
    if isinstance(before, dict):
        return before.keys() == now.keys() and all(before[name] is now[name] for name in now)
    return before == now or before is now


def _difference(a: core.ClosedJaxpr, b: core.ClosedJaxpr) -> str | None:
    """Where two programs differ in operations or in constants."""
    mine, others = list(operations(a.jaxpr)), list(operations(b.jaxpr))
    if [operation.name for operation in mine] != [operation.name for operation in others]:
        pairs = zip(mine, others, strict=False)
        different = (one for one, other in pairs if one.name != other.name)
        return str(written_at(next(different, (mine or others)[-1])))
    for one, other in zip(mine, others, strict=True):
        if not all(map(_same_atom, one.eqn.invars, other.eqn.invars)):
            return str(written_at(one))
    constants = zip(a.jaxpr.constvars, a.consts, b.consts, strict=False)
    for variable, one, two in constants:
        if not _equal(one, two):
            readers = (op for op in mine if any(atom is variable for atom in op.eqn.invars))
            return str(next(map(written_at, readers), None))
    return None


def _same_atom(one: Any, two: Any) -> bool:
    if not isinstance(one, core.Literal) or not isinstance(two, core.Literal):
        return True
    return _equal(one.val, two.val)


def _equal(one: Any, two: Any) -> bool:
    if jnp.issubdtype(getattr(one, "dtype", np.float64), jax.dtypes.prng_key):
        one, two = jax.random.key_data(one), jax.random.key_data(two)
    return np.asarray(one).tobytes() == np.asarray(two).tobytes()
