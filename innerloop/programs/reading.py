"""Which operations of a traced program read its inputs, and which ones its results read."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jax.extend import core

from innerloop.programs.operations import Inside, Operation, inside, operations


def between(
    program: core.ClosedJaxpr, inputs: Iterable[int], outputs: Iterable[int]
) -> list[Operation]:
    """The operations between some inputs and some outputs, including those of called programs.

    An operation counts if it reads one of the inputs and one of the outputs reads it, directly or
    through others, whether or not a derivative passes through these reads.

    Args:
        program: A traced program.
        inputs: Positions of inputs.
        outputs: Positions of outputs.

    Returns:
        The operations, in the order of the program.
    """
    inputs, outputs = set(inputs), set(outputs)
    walk = _Walk()
    jaxpr = program.jaxpr
    walk.forward(jaxpr, [i in inputs for i in range(len(jaxpr.invars))])
    walk.backward(jaxpr, [i in outputs for i in range(len(jaxpr.outvars))])
    return [op for op in operations(jaxpr) if walk.reading[id(op.eqn)] & walk.read[id(op.eqn)]]


def operations_read(jaxpr: core.Jaxpr) -> set[int]:
    """The `id` of each equation that some result reads, including those of called programs."""
    walk = _Walk()
    walk.read_by(jaxpr, [True] * len(jaxpr.outvars))
    return {equation for equation, results in walk.read.items() if results}


def inputs_read(jaxpr: core.Jaxpr) -> list[bool]:
    """For each constant and then each input, whether some result reads it."""
    read = _Walk().read_by(jaxpr, [True] * len(jaxpr.outvars))
    return [var in read for var in (*jaxpr.constvars, *jaxpr.invars)]


_Marking = Callable[[core.Jaxpr, Sequence[bool]], list[bool]]
"""Maps marks on the inputs of a program to marks on its outputs, or the reverse."""


class _Walk:
    """Marks the results of operations that read the inputs (forward) or are read (backward)."""

    def __init__(self):
        self.reading: dict[int, set[int]] = defaultdict(set)
        self.read: dict[int, set[int]] = defaultdict(set)

    def forward(self, jaxpr: core.Jaxpr, given: Sequence[bool]) -> list[bool]:
        marked = {var for var, mark in zip(jaxpr.invars, given, strict=True) if mark}
        for eqn in jaxpr.eqns:
            ins = [_in(atom, marked) for atom in eqn.invars]
            if not any(ins):
                continue
            outs = self._through(eqn, ins, self.forward, onward=True)
            self.reading[id(eqn)].update(i for i, mark in enumerate(outs) if mark)
            marked.update(var for var, mark in zip(eqn.outvars, outs, strict=True) if mark)
        return [_in(atom, marked) for atom in jaxpr.outvars]

    def backward(self, jaxpr: core.Jaxpr, wanted: Sequence[bool]) -> list[bool]:
        marked = self.read_by(jaxpr, wanted)
        return [var in marked for var in jaxpr.invars]

    def read_by(self, jaxpr: core.Jaxpr, wanted: Sequence[bool]) -> set:
        marked = {
            var
            for var, mark in zip(jaxpr.outvars, wanted, strict=True)
            if mark and not isinstance(var, core.Literal)
        }
        for eqn in reversed(jaxpr.eqns):
            outs = [var in marked for var in eqn.outvars]
            if not any(outs):
                continue
            self.read[id(eqn)].update(i for i, mark in enumerate(outs) if mark)
            ins = self._through(eqn, outs, self.backward, onward=False)
            marked.update(
                atom
                for atom, mark in zip(eqn.invars, ins, strict=True)
                if mark and not isinstance(atom, core.Literal)
            )
        return marked

    def _through(self, eqn: core.JaxprEqn, marks: list[bool], walk: _Marking, onward: bool):
        """Maps marks on one side of an operation to marks on its other side."""
        match inside(eqn):
            case Inside(kind="scan") as form:
                return _loop(form, marks, walk, onward)
            case Inside(kind="cond") as form:
                return _branches(form, marks, walk, onward)
            case Inside(kind="call", programs=(called,)):
                return walk(called.jaxpr, marks)
            case Inside(kind="while", programs=programs):
                # The condition decides the results, so every result depends on every input.
                for jaxpr in (program.jaxpr for program in programs):
                    walk(jaxpr, [True] * len(jaxpr.invars if onward else jaxpr.outvars))
        return [True] * len(eqn.outvars if onward else eqn.invars)


def _branches(form: Inside, marks: list[bool], walk: _Marking, onward: bool) -> list[bool]:
    within = marks[1:] if onward else marks
    by_branch = [walk(branch.jaxpr, within) for branch in form.programs]
    either = [any(column) for column in zip(*by_branch, strict=True)]
    return [marks[0] or mark for mark in either] if onward else [True, *either]


def _loop(form: Inside, marks: list[bool], walk: _Marking, onward: bool) -> list[bool]:
    """The marks through a loop, repeated until the carry adds none, since each turn reads it."""
    (body,), (constants,) = form.programs, form.constants
    start, end = (constants, 0) if onward else (0, constants)
    while True:
        result = walk(body.jaxpr, marks)
        grown = list(marks)
        for i in range(form.carry):
            grown[start + i] = marks[start + i] or result[end + i]
        if grown == marks:
            return result
        marks = grown


def _in(atom: Any, marked: set) -> bool:
    return not isinstance(atom, core.Literal) and atom in marked
