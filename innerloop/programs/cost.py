"""Floating-point operations of a program, counted from its trace: nothing is compiled or run.

The compiler's own count takes the body of a loop once. Here a scan counts as often as it turns.
"""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
from jax.extend import core

from innerloop.programs.flop_rules import UNKNOWN, primitive_flops
from innerloop.programs.operations import Inside, inside
from innerloop.programs.reading import operations_read


class Cost(NamedTuple):
    """What a program takes.

    Args:
        flops: Floating-point operations.
        lower_bound: Whether something in it cannot be counted: a `while` loop counts as one turn,
            a foreign function as nothing.
    """

    flops: float
    lower_bound: bool

    def __add__(self, other: Any) -> "Cost":
        return Cost(self.flops + other.flops, self.lower_bound or other.lower_bound)


def flops(function: Callable, *args: Any) -> float:
    """Floating-point operations of a function, which is traced and not run.

    A product of matrices `(m, k)` and `(k, n)` counts 2 m k n, an elementwise operation one per
    element of its result, a reduction one per element that it is given, a decomposition its
    textbook count, moving data nothing. A scan counts its body times its length, a `cond` its
    dearest branch, a `while` loop one turn: then the count is a lower bound, and `cost` says so.
    What no result reads counts nothing, and what is computed twice from the same values counts
    once, as compilers have it. What `jax.checkpoint` computes again counts again.

    Args:
        function: What is counted.
        *args: Pytrees of arrays or of `jax.ShapeDtypeStruct`s.

    Returns:
        The number of operations.

    Raises:
        Exception: What tracing the function raises.
    """
    return cost(function, *args).flops


def cost(function: Callable, *args: Any) -> Cost:
    """As `flops`, with a mark where the count is a lower bound."""
    return program_cost(jax.make_jaxpr(function)(*args))


def program_cost(program: core.ClosedJaxpr) -> Cost:
    """The cost of a program that is traced already."""
    return _Count(operations_read(program.jaxpr)).of_body(program)


class _Count(NamedTuple):
    """`read` holds the `id` of each operation that some result reads."""

    read: set[int]

    def of_body(self, program: core.ClosedJaxpr) -> Cost:
        """The cost of a program whose values are known from nowhere else."""
        jaxpr = program.jaxpr
        return self.inline(jaxpr, [object() for _ in jaxpr.invars], {})[0]

    def inline(self, jaxpr: core.Jaxpr, inputs: list, known: dict) -> tuple[Cost, list]:
        """The cost of what is not known already, and the results.

        A value is an object that stands for it. `known` holds the results of operations.
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
        if form.kind == "solve":  # what is read of its solver is not followed
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
