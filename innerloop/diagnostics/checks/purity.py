"""Randomness outside JAX: two traces of a function must be the same."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core

from innerloop.diagnostics.checks.source import written_at
from innerloop.diagnostics.checks.subject import Subject, jit_quickly
from innerloop.diagnostics.findings import Finding, Severity
from innerloop.programs import operations
from innerloop.trees import is_key


def repeatable(subject: Subject) -> Iterator[Finding]:
    """Checks that two traces give the same program, and two runs of it the same bits."""
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


def _difference(a: core.ClosedJaxpr, b: core.ClosedJaxpr) -> str | None:
    """The first difference of two programs in operations or constants; None if there is none."""
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
    if is_key(one):
        one, two = jax.random.key_data(one), jax.random.key_data(two)
    return np.asarray(one).tobytes() == np.asarray(two).tobytes()
