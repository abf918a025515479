"""A traced program as one list of operations, with the inputs that each value depends on."""

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

from jax.extend import core

from innerloop.programs.operations import Inside, Operation, inside


class Value(NamedTuple):
    """A value of a program.

    Attributes:
        number: A unique number. The result of a call is the same value as inside the call.
        inputs: The positions of the program's inputs that the value depends on.
    """

    number: int
    inputs: frozenset[int]


class FlatStep(NamedTuple):
    """An operation with its arguments and results; a literal is a value without inputs."""

    operation: Operation
    args: list[Value]
    results: list[Value]


class Flat(NamedTuple):
    """A program as a list, with calls inlined.

    A loop or a conditional is one operation, followed by those of its body or of its branches, each
    listed once. Its results count as depending on all of its arguments.
    """

    inputs: list[Value]
    steps: list[FlatStep]
    outputs: list[Value]


def flat(program: core.ClosedJaxpr) -> Flat:
    """The operations of a program and of the programs that it runs, in one list."""
    listing = _Listing([], [])
    inputs = [listing.new(frozenset((i,))) for i in range(len(program.jaxpr.invars))]
    outputs = listing.run(program.jaxpr, inputs, ())
    return Flat(inputs, listing.steps, outputs)


class _Listing(NamedTuple):
    steps: list[FlatStep]
    values: list[Value]

    def new(self, inputs: frozenset[int]) -> Value:
        self.values.append(Value(len(self.values), inputs))
        return self.values[-1]

    def run(self, jaxpr: core.Jaxpr, args: Sequence[Value], callers: tuple) -> list[Value]:
        known: dict[Any, Value] = dict(zip(jaxpr.invars, args, strict=True))
        known |= {constant: self.new(frozenset()) for constant in jaxpr.constvars}
        read = lambda atom: self.new(frozenset()) if isinstance(atom, core.Literal) else known[atom]
        for eqn in jaxpr.eqns:
            results = self.step(eqn, [read(atom) for atom in eqn.invars], callers)
            known.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def step(self, eqn: core.JaxprEqn, args: list[Value], callers: tuple) -> list[Value]:
        form = inside(eqn)
        if form is not None and form.kind == "call":
            return self.run(form.programs[0].jaxpr, args, (eqn, *callers))
        every: frozenset[int] = reduce(or_, (arg.inputs for arg in args), frozenset())
        results = [self.new(every) for _ in eqn.outvars]
        self.steps.append(FlatStep(Operation(eqn, callers), args, results))
        for jaxpr, given in self.bodies(form, args, every):
            self.run(jaxpr, given, (eqn, *callers))
        return results

    def bodies(self, form: Inside | None, args: list[Value], every: frozenset[int]):
        """The programs of a loop or of branches, each with its arguments."""
        match form:
            case Inside(kind="scan", programs=(body,), constants=(n,), carry=carry):
                carried = [self.new(every) for _ in range(carry)]
                yield body.jaxpr, [*args[:n], *carried, *args[n + carry :]]
            case Inside(kind="cond", programs=branches):
                yield from ((branch.jaxpr, args[1:]) for branch in branches)
            case Inside(kind="while", programs=programs, constants=(n, m)):
                given = args[:n], args[n : n + m]
                for program, constants in zip(programs, given, strict=True):
                    carried = [self.new(every) for _ in range(len(args) - n - m)]
                    yield program.jaxpr, [*constants, *carried]
