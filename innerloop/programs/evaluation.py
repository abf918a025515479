"""Running a traced program one operation at a time."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend import core

from innerloop.programs.operations import Inside, Operation, inside

Record = Callable[[Operation | None, list, list], None]
"""Called with every operation that was run, its inputs and its outputs. The operation is None if a
scan took a row of an array or stacked rows."""


def evaluate(program: core.ClosedJaxpr, args: Sequence, record: Record) -> list:
    """Run a program one operation at a time, without compiling it as a whole.

    Args:
        program: A traced program.
        args: Its arguments, one for each input.
        record: Called after each operation.

    Returns:
        The results of the program.
    """
    return _Evaluation(record, ()).run(program, args)


class _Evaluation(NamedTuple):
    """`callers` are the calls that contain the program, innermost first."""

    record: Record
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
            self.record(Operation(eqn, self.callers), args, outputs)
            return outputs
        within = _Evaluation(self.record, (eqn, *self.callers))
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
            for x, taken in zip(xs, row, strict=True):
                self.record(None, [x], [taken])
            out = self.run(body, [*constants, *carry, *row])
            carry = out[: form.carry]
            rows.append(out[form.carry :])
        if params["reverse"]:
            rows.reverse()
        columns = [list(column) for column in zip(*rows, strict=True)]
        stacked = [jnp.stack(column) for column in columns]
        for column, stack in zip(columns, stacked, strict=True):
            self.record(None, column, [stack])
        return [*carry, *stacked]

    def loop(self, form: Inside, args: list) -> list:
        (condition, body), (n, m) = form.programs, form.constants
        of_condition, of_body, carry = args[:n], args[n : n + m], args[n + m :]
        while bool(self.run(condition, [*of_condition, *carry])[0]):
            carry = self.run(body, [*of_body, *carry])
        return carry
