"""The origin of a number that is not finite, found by running a program operation by operation."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import PyTree

from innerloop.programs.operations import Inside, Operation, inside


class _Step(NamedTuple):
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
    executed: list[_Step] = []
    results = _Evaluation(executed, ()).run(closed, jax.tree.leaves(args))
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


def _trace_back(values: Sequence, made_by: dict[int, _Step], is_bad: Callable):
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


class _Evaluation(NamedTuple):
    """Runs a traced program one operation at a time, without compiling it as a whole.

    `executed` receives the steps that are run. `callers` are the calls that contain the program,
    innermost first.
    """

    executed: list[_Step]
    callers: tuple[core.JaxprEqn, ...]

    def run(self, program: core.ClosedJaxpr, args: Sequence) -> list:
        jaxpr = program.jaxpr
        values: dict[Any, Any] = dict(zip(jaxpr.constvars, program.consts, strict=True))
        values.update(zip(jaxpr.invars, args, strict=True))
        read = lambda atom: atom.val if isinstance(atom, core.Literal) else values[atom]
        for eqn in jaxpr.eqns:
            outputs = self.step(eqn, list(map(read, eqn.invars)))
            values.update(zip(eqn.outvars, outputs, strict=True))
        return list(map(read, jaxpr.outvars))

    def step(self, eqn: core.JaxprEqn, args: list) -> list:
        form = inside(eqn)
        if form is None or form.kind == "solve":
            result = eqn.primitive.bind(*args, **eqn.params)
            outputs = list(result) if eqn.primitive.multiple_results else [result]
            self.executed.append(_Step(Operation(eqn, self.callers), args, outputs))
            return outputs
        within = _Evaluation(self.executed, (eqn, *self.callers))
        if form.kind == "scan":
            return within.scan(form, eqn.params, args)
        if form.kind == "while":
            return within.loop(form, args)
        if form.kind == "cond":
            return within.run(form.programs[int(args[0])], args[1:])
        return within.run(form.programs[0], args)

    def scan(self, form: Inside, params: dict, args: list) -> list:
        (body,), (fixed,) = form.programs, form.constants
        constants, carry, xs = args[:fixed], args[fixed:][: form.carry], args[fixed + form.carry :]
        order = range(params["length"])
        rows = []
        for i in reversed(order) if params["reverse"] else order:
            row = [x[i] for x in xs]
            taken = zip(xs, row, strict=True)
            self.executed.extend(_Step(None, [x], [value]) for x, value in taken)
            out = self.run(body, [*constants, *carry, *row])
            carry = out[: form.carry]
            rows.append(out[form.carry :])
        if params["reverse"]:
            rows.reverse()
        columns = [list(column) for column in zip(*rows, strict=True)]
        stacked = [jnp.stack(column) for column in columns]
        pairs = zip(columns, stacked, strict=True)
        self.executed.extend(_Step(None, column, [stack]) for column, stack in pairs)
        return [*carry, *stacked]

    def loop(self, form: Inside, args: list) -> list:
        (condition, body), (n, m) = form.programs, form.constants
        of_condition, of_body, carry = args[:n], args[n : n + m], args[n + m :]
        while bool(self.run(condition, [*of_condition, *carry])[0]):
            carry = self.run(body, [*of_body, *carry])
        return carry
