"""Floating-point operations of a program, counted from its trace: nothing is compiled or run.

The compiler's own count takes the body of a loop once. Here a scan counts as often as it turns.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend import core

from innerloop.programs.flop_rules import UNKNOWN, is_elementwise, primitive_flops
from innerloop.programs.straight_line import Instruction, Needs, Program


class Cost(NamedTuple):
    """What a program takes.

    - `flops`: floating-point operations
    - `calls`: how often one of the operations is done that are not fused into others (products,
      reductions, turns of loops): each has a price of its own, however small its arrays
    - `lower_bound`: whether something in it cannot be counted: a loop whose number of turns is
      decided by its values counts as one turn, a foreign function as nothing
    """

    flops: float
    calls: int
    lower_bound: bool

    def __add__(self, other: Any) -> "Cost":
        return Cost(
            self.flops + other.flops,
            self.calls + other.calls,
            self.lower_bound or other.lower_bound,
        )

    def times(self, turns: int) -> "Cost":
        """This many of them, in a loop."""
        flops, calls = turns * self.flops, turns * (self.calls + 1)
        return Cost(flops, calls, self.lower_bound and turns > 0)


NOTHING = Cost(0.0, 0, False)


def flops(function: Callable, *args: Any) -> float:
    """Floating-point operations of `function` on arguments like these.

    - `args`: pytrees of arrays or of `jax.ShapeDtypeStruct`s. The function is traced, not run.

    A product of matrices `(m, k)` and `(k, n)` counts 2 m k n, an elementwise operation one per
    element of its result, a reduction one per element that it is given, a decomposition its
    textbook count, moving data nothing. A scan counts its body times its length, a `cond` its
    dearest branch, a `while` loop its body times its turns where bounds and step are literals, and
    once where they are not: then the count is a lower bound, and `cost` says so. What is computed
    twice from the same values counts once, and what nobody needs not at all, as compilers have it;
    what `jax.checkpoint` computes again counts again.

    Raises what tracing the function raises.
    """
    return cost(function, *args).flops


def cost(function: Callable, *args: Any) -> Cost:
    """As `flops`, with a mark where the count is a lower bound."""
    return program_cost(jax.make_jaxpr(function)(*args))


def program_cost(program: core.ClosedJaxpr) -> Cost:
    """The same of a program that is traced already."""
    whole = Program(program.jaxpr)
    return _wanted_cost(whole, whole.everything)


def _wanted_cost(program: Program, wanted: frozenset[int]) -> Cost:
    """Of the instructions that the wanted results need."""
    costs = [_instruction_cost(*pair) for pair in program.live(wanted)]
    return sum(costs, NOTHING)


def _instruction_cost(instruction: Instruction, needs: Needs) -> Cost:
    equation, name = instruction.equation, instruction.name
    if equation is None:
        return NOTHING
    if not instruction.bodies:
        return Cost(primitive_flops(equation), int(not is_elementwise(name)), name in UNKNOWN)
    pairs = zip(instruction.bodies, needs.bodies, strict=True)
    costs = [_wanted_cost(body, wanted) for body, wanted in pairs]
    if name == "cond":
        return max(costs)._replace(lower_bound=any(cost.lower_bound for cost in costs))
    if name == "scan":
        return costs[0].times(equation.params["length"])
    once = sum(costs, NOTHING)
    if name != "while":
        return once
    turns = instruction.turns
    return once._replace(lower_bound=True) if turns is None else once.times(turns)
