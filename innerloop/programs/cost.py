"""Floating-point operations of a program, counted from its trace; nothing is compiled or run.

The compiler's own count takes the body of a loop once. Here a scan counts its body as often as it
is run.
"""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
from jax.extend import core

from innerloop.programs.flop_rules import UNKNOWN, primitive_flops
from innerloop.programs.operations import Inside, inside
from innerloop.programs.reading import operations_read


class Cost(NamedTuple):
    """The cost of a program.

    Args:
        flops: Floating-point operations.
        lower_bound: Whether a part of it cannot be counted: a `while` loop counts as one turn, and
            a foreign function as nothing.
    """

    flops: float
    lower_bound: bool

    def __add__(self, other: Any) -> "Cost":
        return Cost(self.flops + other.flops, self.lower_bound or other.lower_bound)


def flops(function: Callable, *args: Any) -> float:
    """The floating-point operations of a function, which is traced and not run.

    A product of matrices `(m, k)` and `(k, n)` counts 2 m k n, an elementwise operation one per
    element of its result, a reduction one per element of its argument, a decomposition its textbook
    count, moving data nothing. A scan counts its body times its length, a `cond` its most expensive
    branch, a `while` loop one turn: then the count is a lower bound, and `cost` marks it as one.
    Operations that no result reads count nothing, and those that are computed twice from the same
    values count once, as in compiled code. Operations that `jax.checkpoint` repeats count again.

    Args:
        function: The function to count.
        *args: Pytrees of arrays or of `jax.ShapeDtypeStruct`s.

    Returns:
        The number of operations.

    Raises:
        Exception: Any error that tracing the function raises.
    """
    return cost(function, *args).flops


def cost(function: Callable, *args: Any) -> Cost:
    """The same as `flops`, with a mark if the count is a lower bound."""
    return program_cost(jax.make_jaxpr(function)(*args))


def program_cost(program: core.ClosedJaxpr) -> Cost:
    """The cost of a program that is already traced."""
    return _Count(operations_read(program.jaxpr)).of_body(program)


class _Count(NamedTuple):
    """`read` holds the `id` of each operation that some result reads."""

    read: set[int]

    def of_body(self, program: core.ClosedJaxpr) -> Cost:
        """The cost of a program none of whose values is known from elsewhere."""
        jaxpr = program.jaxpr
        return self.inline(jaxpr, [object() for _ in jaxpr.invars], {})[0]

    def inline(self, jaxpr: core.Jaxpr, inputs: list, known: dict) -> tuple[Cost, list]:
        """The cost of the operations whose results are not in `known`, and the program's results.

        Each value is represented by an object. `known` maps operations to their results.
        """
        values: dict[Any, Any] = dict(zip(jaxpr.invars, inputs, strict=True))
        read = lambda atom: _written(atom) if isinstance(atom, core.Literal) else values.get(atom)
        values |= {constant: object() for constant in jaxpr.constvars}
        total = Cost(0.0, False)
        for eqn in jaxpr.eqns:
            if id(eqn) not in self.read and not eqn.effects:
                continue
            form, args = inside(eqn), list(map(read, eqn.invars))
            if form is not None and form.kind == "call":
                if eqn.params.get("prevent_cse") and eqn.params.get("differentiated"):
                    args = [object() for _ in args]
                cost, results = self.inline(form.programs[0].jaxpr, args, known)
                total += cost
            else:
                params = ((name, _hashable(value)) for name, value in sorted(eqn.params.items()))
                key = object() if eqn.effects else (eqn.primitive, *args, *params)
                if key not in known:
                    known[key] = [object() for _ in eqn.outvars]
                    total += self.operation(eqn, form)
                results = known[key]
            values.update(zip(eqn.outvars, results, strict=True))
        return total, list(map(read, jaxpr.outvars))

    def operation(self, eqn: core.JaxprEqn, form: Inside | None) -> Cost:
        if form is None:
            return Cost(primitive_flops(eqn), eqn.primitive.name in UNKNOWN)
        if form.kind == "solve":  # `self.read` does not cover its solver
            return program_cost(form.programs[0])
        parts = list(map(self.of_body, form.programs))
        unknown = form.kind == "while" or any(part.lower_bound for part in parts)
        counts = [part.flops for part in parts]
        turns = eqn.params["length"] if form.kind == "scan" else 1
        return Cost(max(counts) if form.kind == "cond" else turns * sum(counts), unknown)


def _written(literal: core.Literal) -> Hashable:
    return str(literal.aval), _hashable(literal.val)


def _hashable(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value
