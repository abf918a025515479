"""Where a number that is not finite comes from: a program run one operation at a time."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import PyTree

from innerloop.programs import Operation, called, scan_counts


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
    results = _Interpreter(executed, ()).run(closed.jaxpr, closed.consts, jax.tree.leaves(args))
    # A value is known by its identity: `executed` keeps all of them alive. Where an operation hands
    # its argument on, it did not make it.
    made_by = {
        id(value): record
        for record in executed
        for value in record.outputs
        if not any(value is given for given in record.inputs)
    }
    of_nan, given = _trace_back(results, made_by, _has_nan)
    if given:
        return None
    of_infinity, given = _trace_back(of_nan.inputs if of_nan else results, made_by, _has_infinity)
    origin = of_nan if given or of_infinity is None else of_infinity
    return origin.operation if origin else None


def _trace_back(values: Sequence, made_by: dict[int, _Executed], is_bad: Callable):
    """What made a bad value of good ones (None: nothing is bad), and whether it was given as bad.

    What was written as bad is a literal or a constant, spread by operations that compute nothing.
    """
    suspect, origin = next(filter(is_bad, values), None), None
    while suspect is not None:
        if id(suspect) not in made_by:
            return None, True
        origin = made_by[id(suspect)]
        suspect = next(filter(is_bad, origin.inputs), None)
    return origin, False


class _Interpreter(NamedTuple):
    """Runs programs and keeps a record; `callers` are the calls that it is in, innermost first."""

    executed: list[_Executed]
    callers: tuple[core.JaxprEqn, ...]

    def run(self, jaxpr: core.Jaxpr, consts: Sequence, args: Sequence) -> list:
        environment: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        environment.update(zip(jaxpr.invars, args, strict=True))
        for eqn in jaxpr.eqns:
            values = [_read(atom, environment) for atom in eqn.invars]
            environment.update(zip(eqn.outvars, self.evaluate(eqn, values), strict=True))
        return [_read(atom, environment) for atom in jaxpr.outvars]

    def evaluate(self, eqn: core.JaxprEqn, values: list) -> list:
        inside = _Interpreter(self.executed, (eqn, *self.callers))
        name, params = eqn.primitive.name, eqn.params
        if name == "scan":
            return inside.scan(params, values)
        if name == "cond":
            branch = params["branches"][int(values[0])]
            return inside.run(branch.jaxpr, branch.consts, values[1:])
        if name == "while":
            return inside.loop(params, values)
        inner = called(eqn)
        if inner is not None:
            return inside.run(*inner, values)
        result = eqn.primitive.bind(*values, **params)
        outputs = list(result) if eqn.primitive.multiple_results else [result]
        self.executed.append(_Executed(Operation(eqn, self.callers), values, outputs))
        return outputs

    def scan(self, params: dict, values: list) -> list:
        body, (consts, carries) = params["jaxpr"], scan_counts(params)
        fixed, rest = values[:consts], values[consts:]
        carry, xs = rest[:carries], rest[carries:]
        order = range(params["length"])
        rows = []
        for i in reversed(order) if params["reverse"] else order:
            row = [x[i] for x in xs]
            self.executed.extend(_Executed(None, [x], [y]) for x, y in zip(xs, row, strict=True))
            out = self.run(body.jaxpr, body.consts, [*fixed, *carry, *row])
            carry = out[:carries]
            rows.append(out[carries:])
        if params["reverse"]:
            rows.reverse()
        columns = [list(column) for column in zip(*rows, strict=True)]
        stacked = [jnp.stack(column) for column in columns]
        pairs = zip(columns, stacked, strict=True)
        self.executed.extend(_Executed(None, column, [stack]) for column, stack in pairs)
        return [*carry, *stacked]

    def loop(self, params: dict, values: list) -> list:
        n, m = params["cond_nconsts"], params["body_nconsts"]
        of_cond, of_body, carry = values[:n], values[n : n + m], values[n + m :]
        cond, body = params["cond_jaxpr"], params["body_jaxpr"]
        while bool(self.run(cond.jaxpr, cond.consts, [*of_cond, *carry])[0]):
            carry = self.run(body.jaxpr, body.consts, [*of_body, *carry])
        return carry


def _read(atom: Any, environment: dict) -> Any:
    return atom.val if isinstance(atom, core.Literal) else environment[atom]


def _has_nan(value: Any) -> bool:
    return _is_inexact(value) and bool(jnp.any(jnp.isnan(value)))


def _has_infinity(value: Any) -> bool:
    return _is_inexact(value) and bool(jnp.any(jnp.isinf(value)))


def _is_inexact(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    return isinstance(value, float) or (dtype is not None and jnp.issubdtype(dtype, jnp.inexact))
