"""Where a number that is not finite comes from: a program run one operation at a time."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import PyTree

from innerloop.programs import Operation, called


class _Executed(NamedTuple):
    """What made `outputs` of `inputs`: an operation, None where a loop took or stacked rows."""

    operation: Operation | None
    inputs: list[Any]
    outputs: list[Any]


def origin_of_non_finite(function: Callable, *args: PyTree) -> Operation | None:
    """The operation that made numbers that are not finite out of finite ones.

    `function(*args)` is run; from a leaf of its result that is not finite the search goes back, by
    whichever input is not finite either. None where everything is finite, or the arguments are not.
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
    suspect = next((value for value in results if _is_bad(value)), None)
    culprit = None
    while suspect is not None and id(suspect) in made_by:
        record = made_by[id(suspect)]
        culprit = record.operation
        suspect = next((value for value in record.inputs if _is_bad(value)), None)
    return culprit if suspect is None else None


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
        body, consts, carries = params["jaxpr"], params["num_consts"], params["num_carry"]
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


def _is_bad(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        return False
    return not jnp.all(jnp.isfinite(value))
