"""Traced programs: what their results read, and the operations on the way."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from jax.extend import core

_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
"""Parameters under which primitives that just call a program hold it."""


class Operation(NamedTuple):
    """An operation of a traced program, and the calls that it is in, innermost first."""

    eqn: core.JaxprEqn
    callers: tuple[core.JaxprEqn, ...]

    @property
    def name(self) -> str:
        """Of its primitive."""
        return self.eqn.primitive.name


def between(
    program: core.ClosedJaxpr, inputs: Iterable[int], outputs: Iterable[int]
) -> list[Operation]:
    """The operations that read one of the `inputs` and are read by one of the `outputs`.

    Both by position, both directly or through others, in programs that the program calls too. A
    read is a read: whether a derivative flows along it does not count.
    """
    inputs, outputs = set(inputs), set(outputs)
    walk = _Walk()
    jaxpr = program.jaxpr
    walk.forward(jaxpr, [i in inputs for i in range(len(jaxpr.invars))])
    walk.backward(jaxpr, [i in outputs for i in range(len(jaxpr.outvars))])
    return [op for op in operations(jaxpr) if walk.reading[id(op.eqn)] & walk.read[id(op.eqn)]]


def inputs_read(jaxpr: core.Jaxpr) -> list[bool]:
    """Whether some result reads each constant and each input, in that order."""
    read = _Walk().read_by(jaxpr, [True] * len(jaxpr.outvars))
    return [var in read for var in (*jaxpr.constvars, *jaxpr.invars)]


def operations(jaxpr: core.Jaxpr, callers: tuple[core.JaxprEqn, ...] = ()) -> Iterator[Operation]:
    """All operations, those of the programs that they call after them."""
    for eqn in jaxpr.eqns:
        yield Operation(eqn, callers)
        for inner in subprograms(eqn):
            yield from operations(inner, (eqn, *callers))


def subprograms(eqn: core.JaxprEqn) -> list[core.Jaxpr]:
    """The programs that an operation calls."""
    values = [v for p in eqn.params.values() for v in (p if isinstance(p, list | tuple) else [p])]
    values = [getattr(value, "jaxpr", value) for value in values]
    return [value for value in values if isinstance(value, core.Jaxpr)]


class _Walk:
    """Marks results of operations: forward, those that read the inputs; backward, those read."""

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

    def _through(self, eqn: core.JaxprEqn, marks: list[bool], walk: Any, onward: bool):
        """Marks on one side of an operation as marks on its other side."""
        name, params = eqn.primitive.name, eqn.params
        if name == "scan":
            return self._loop(params["jaxpr"].jaxpr, marks, walk, onward, params)
        if name == "while":
            # What the condition reads decides the results: everything depends on everything.
            for inner in subprograms(eqn):
                walk(inner, [True] * len(inner.invars if onward else inner.outvars))
        elif name == "cond":
            return self._branches(params["branches"], marks, walk, onward)
        else:
            inner = called(eqn)
            if inner is not None:
                return walk(inner[0], marks)
        return [True] * len(eqn.outvars if onward else eqn.invars)

    def _branches(self, branches: Sequence, marks: list[bool], walk: Any, onward: bool):
        if onward:
            by_branch = [walk(branch.jaxpr, marks[1:]) for branch in branches]
            return [marks[0] or any(column) for column in zip(*by_branch, strict=True)]
        by_branch = [walk(branch.jaxpr, marks) for branch in branches]
        return [True, *(any(column) for column in zip(*by_branch, strict=True))]

    def _loop(self, body: core.Jaxpr, marks: list[bool], walk: Any, onward: bool, params):
        """What a step leaves in the carry, the next step reads."""
        consts, carry = scan_counts(params)
        while True:
            result = walk(body, marks)
            start, end = (consts, 0) if onward else (0, consts)
            grown = list(marks)
            for i in range(carry):
                grown[start + i] = marks[start + i] or result[end + i]
            if grown == marks:
                return result
            marks = grown


def _in(atom: Any, marked: set) -> bool:
    return not isinstance(atom, core.Literal) and atom in marked


def scan_counts(params: dict) -> tuple[int, int]:
    """How many constants and how many carried values a scan takes, before its rows."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # from jax 0.11 on
    return len(list(consts)), len(list(carry))


def called(eqn: core.JaxprEqn) -> tuple[core.Jaxpr, Sequence] | None:
    """The program, with its constants, that an operation calls on what it is itself given."""
    for name in _CALLS:
        inner = eqn.params.get(name)
        jaxpr = getattr(inner, "jaxpr", inner)
        if isinstance(jaxpr, core.Jaxpr) and len(jaxpr.invars) == len(eqn.invars):
            return jaxpr, getattr(inner, "consts", ())
    return None
