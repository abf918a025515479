"""Which operations of a traced program read its inputs, and which ones its results read."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from jax.extend import core

from innerloop.programs.operations import Inside, Operation, inside, operations


def between(program: core.ClosedJaxpr, inputs: Iterable[int]) -> list[Operation]:
    """The operations between some inputs and the outputs, including those of called programs.

    An operation counts if it reads one of the inputs and one of the outputs reads it, directly or
    through others, whether or not a derivative passes through these reads.

    Args:
        program: A traced program.
        inputs: Positions of inputs.

    Returns:
        The operations, in the order of the program.
    """
    inputs = set(inputs)
    onward, back = _Walk(onward=True), _Walk(onward=False)
    jaxpr = program.jaxpr
    onward.through(jaxpr, [i in inputs for i in range(len(jaxpr.invars))])
    back.through(jaxpr, [True] * len(jaxpr.outvars))
    return [op for op in operations(jaxpr) if onward.results[id(op.eqn)] & back.results[id(op.eqn)]]


def operations_read(jaxpr: core.Jaxpr) -> set[int]:
    """The `id` of each equation that some result reads, including those of called programs."""
    walk = _Walk(onward=False)
    walk.marked(jaxpr, [True] * len(jaxpr.outvars))
    return {equation for equation, results in walk.results.items() if results}


def inputs_read(jaxpr: core.Jaxpr) -> list[bool]:
    """For each constant and then each input, whether some result reads it."""
    read = _Walk(onward=False).marked(jaxpr, [True] * len(jaxpr.outvars))
    return [var in read for var in (*jaxpr.constvars, *jaxpr.invars)]


class _Walk:
    """Marks the values that read some inputs (onward), or that some outputs read (not onward).

    `results` has the marked results of each operation, by the `id` of its equation.
    """

    def __init__(self, onward: bool):
        self.onward = onward
        self.results: dict[int, set[int]] = defaultdict(set)

    def through(self, jaxpr: core.Jaxpr, marks: Sequence[bool]) -> list[bool]:
        """Maps marks on one end of a program, where the walk begins, to marks on its other end."""
        marked = self.marked(jaxpr, marks)
        return [_in(atom, marked) for atom in (jaxpr.outvars if self.onward else jaxpr.invars)]

    def marked(self, jaxpr: core.Jaxpr, marks: Sequence[bool]) -> set:
        """The marked variables of a program, from the marks on the end where the walk begins."""
        marked = _chosen(jaxpr.invars if self.onward else jaxpr.outvars, marks)
        for eqn in jaxpr.eqns if self.onward else reversed(jaxpr.eqns):
            near, far = self._ends(eqn.invars, eqn.outvars)
            before = [_in(atom, marked) for atom in near]
            if any(before):
                after = self._operation(eqn, before, len(far))
                _, results = self._ends(before, after)
                self.results[id(eqn)].update(i for i, mark in enumerate(results) if mark)
                marked |= _chosen(far, after)
        return marked

    def _ends(self, inputs: Any, outputs: Any) -> tuple[Any, Any]:
        """Where the walk begins, and where it ends."""
        return (inputs, outputs) if self.onward else (outputs, inputs)

    def _operation(self, eqn: core.JaxprEqn, marks: list[bool], count: int) -> list[bool]:
        """Maps marks on one side of an operation to the `count` marks on its other side."""
        match inside(eqn):
            case Inside(kind="scan") as form:
                return self._loop(form, marks)
            case Inside(kind="cond") as form:
                return self._branches(form, marks)
            case Inside(kind="call", programs=(called,)):
                return self.through(called.jaxpr, marks)
            case Inside(kind="while", programs=programs):
                # The condition decides the results, so every result depends on every input.
                for jaxpr in (program.jaxpr for program in programs):
                    self.marked(jaxpr, [True] * len(self._ends(jaxpr.invars, jaxpr.outvars)[0]))
        return [True] * count

    def _branches(self, form: Inside, marks: list[bool]) -> list[bool]:
        within = marks[1:] if self.onward else marks
        by_branch = [self.through(branch.jaxpr, within) for branch in form.programs]
        either = [any(column) for column in zip(*by_branch, strict=True)]
        return [marks[0] or mark for mark in either] if self.onward else [True, *either]

    def _loop(self, form: Inside, marks: list[bool]) -> list[bool]:
        """Marks through a loop: each iteration reads the carry, so repeat until it gains none."""
        (body,), (constants,) = form.programs, form.constants
        start, end = self._ends(constants, 0)
        while True:
            result = self.through(body.jaxpr, marks)
            grown = list(marks)
            for i in range(form.carry):
                grown[start + i] = marks[start + i] or result[end + i]
            if grown == marks:
                return result
            marks = grown


def _chosen(atoms: Sequence, marks: Sequence[bool]) -> set:
    """The marked variables, without the literals."""
    pairs = zip(atoms, marks, strict=True)
    return {atom for atom, mark in pairs if mark and not isinstance(atom, core.Literal)}


def _in(atom: Any, marked: set) -> bool:
    return not isinstance(atom, core.Literal) and atom in marked
