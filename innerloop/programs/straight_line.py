"""A traced program as a compiler sees it: calls inlined, no value computed twice, needs known."""

from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

from jax.extend import core

from innerloop.programs.operations import Inside, inside

Value = Hashable
"""A number, or a `Constant` for a literal."""


class Constant(NamedTuple):
    """A value that is written in the program."""

    kind: str
    value: Any


class Instruction(NamedTuple):
    """One operation, its arguments and results, and the programs that it runs.

    - `equation`: None for a barrier, past which the compiler does not see that values are the same
    - `form`, `bodies`: how it runs programs, and these programs
    - `turns`: how often a `while` loop goes round, where that can be read off
    """

    equation: core.JaxprEqn | None
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    form: Inside | None = None
    bodies: "tuple[Program, ...]" = ()
    turns: int | None = None

    @property
    def name(self) -> str:
        """The name of the primitive."""
        return "barrier" if self.equation is None else self.equation.primitive.name


class Needs(NamedTuple):
    """What an operation needs for some of its results.

    - `inputs`: positions of its arguments
    - `bodies`: for each program that it holds, positions of the results that are wanted of it
    """

    inputs: frozenset[int]
    bodies: tuple[frozenset[int], ...]


class Program:
    """Instructions in order, from `inputs` to `outputs`."""

    def __init__(self, jaxpr: core.Jaxpr):
        writer = _Writer()
        self.inputs = tuple(writer.fresh() for _ in jaxpr.invars)
        self.outputs = writer.write(jaxpr, self.inputs)
        self.instructions = writer.instructions
        self._needed: dict[frozenset[int], frozenset[int]] = {}

    @property
    def everything(self) -> frozenset[int]:
        """Positions of all results."""
        return frozenset(range(len(self.outputs)))

    def live(self, wanted: Iterable[int]):
        """The instructions that the wanted results need, last first, each with its `Needs`."""
        live = {self.outputs[i] for i in wanted}
        for instruction in reversed(self.instructions):
            results = _places(instruction.outputs, live)
            if results or (instruction.equation is not None and instruction.equation.effects):
                needs = needs_of(instruction, results)
                live |= {instruction.inputs[i] for i in needs.inputs}
                yield instruction, needs
        self._needed[frozenset(wanted)] = _places(self.inputs, live)

    def needed(self, wanted: frozenset[int]) -> frozenset[int]:
        """Positions of the inputs that the wanted results need."""
        if wanted not in self._needed:
            for _ in self.live(wanted):
                pass
        return self._needed[wanted]


def needs_of(instruction: Instruction, results: frozenset[int]) -> Needs:
    """What an instruction needs for the results at these positions."""
    form, bodies = instruction.form, instruction.bodies
    if form is not None and form.kind == "scan":
        return _needs_of_scan(form, bodies[0], results)
    if form is not None and form.kind == "while":
        return _needs_of_while(form, bodies[0], bodies[1], results)
    if form is not None and form.kind == "cond":
        branches = frozenset().union(*(body.needed(results) for body in bodies))
        return Needs(frozenset({0} | {i + 1 for i in branches}), (results,) * len(bodies))
    everything = frozenset(range(len(instruction.inputs)))
    return Needs(everything, tuple(body.everything for body in bodies))


def _needs_of_scan(form: Inside, body: Program, results: frozenset[int]) -> Needs:
    (constants,), carried = form.constants, form.carry
    wanted = results
    while True:
        used = body.needed(wanted)
        carry = {i - constants for i in used if constants <= i < constants + carried}
        if carry <= wanted:
            return Needs(used | {i + constants for i in wanted if i < carried}, (wanted,))
        wanted |= carry


def _needs_of_while(
    form: Inside, condition: Program, body: Program, results: frozenset[int]
) -> Needs:
    of_condition, of_body = form.constants
    asked = condition.needed(condition.everything)
    wanted = results | {i - of_condition for i in asked if i >= of_condition}
    while True:
        used = body.needed(wanted)
        carry = {i - of_body for i in used if i >= of_body}
        if carry <= wanted:
            constants = {i for i in asked if i < of_condition}
            constants |= {i + of_condition for i in used if i < of_body}
            first = of_condition + of_body
            inputs = frozenset(constants | {i + first for i in wanted})
            return Needs(inputs, (condition.everything, wanted))
        wanted |= carry


class _Writer:
    """Writes a traced program as instructions."""

    def __init__(self):
        self.instructions: list[Instruction] = []
        self._known: dict[Hashable, tuple[Value, ...]] = {}
        self._count = 0

    def fresh(self) -> Value:
        self._count += 1
        return self._count

    def write(self, jaxpr: core.Jaxpr, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
        """Add the program's instructions; returns its results."""
        values: dict[core.Var, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
        values |= {constant: self.fresh() for constant in jaxpr.constvars}

        def read(atom: core.Var | core.Literal) -> Value:
            if isinstance(atom, core.Literal):
                return Constant(str(atom.aval), _hashable(atom.val))
            return values[atom]

        for equation in jaxpr.eqns:
            results = self._add(equation, tuple(map(read, equation.invars)))
            values |= zip(equation.outvars, results, strict=True)
        return tuple(map(read, jaxpr.outvars))

    def _add(self, equation: core.JaxprEqn, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
        name, params, form = equation.primitive.name, equation.params, inside(equation)
        if form is not None and form.kind == "call":
            if params.get("prevent_cse") and params.get("differentiated"):
                inputs = tuple(map(self._barrier, inputs))
            return self.write(form.programs[0].jaxpr, inputs)
        if form is not None:
            bodies = tuple(Program(program.jaxpr) for program in form.programs)
            turns = _turns(form, inputs) if form.kind == "while" else None
            return self._append(equation, inputs, form, bodies, turns)
        if equation.effects:
            return self._append(equation, inputs)
        key = (name, inputs, tuple((key, _hashable(params[key])) for key in sorted(params)))
        if key not in self._known:
            self._known[key] = self._append(equation, inputs)
        return self._known[key]

    def _append(self, equation, inputs, *of_loops) -> tuple[Value, ...]:
        outputs = tuple(self.fresh() for _ in equation.outvars)
        self.instructions.append(Instruction(equation, inputs, outputs, *of_loops))
        return outputs

    def _barrier(self, value: Value) -> Value:
        """The same value, of which the compiler is not to know that it is the same."""
        if isinstance(value, Constant):
            return value
        result = self.fresh()
        self.instructions.append(Instruction(None, (value,), (result,)))
        return result


def _turns(form: Inside, inputs: tuple[Value, ...]) -> int | None:
    """How often `for (i = a; i < b; i += c)` goes round, where a, b and c are literals."""
    condition, body = (program.jaxpr for program in form.programs)
    of_condition, of_body = form.constants
    start = inputs[of_condition + of_body :]
    if len(condition.eqns) != 1 or condition.eqns[0].primitive.name != "lt":
        return None
    compared = dict(zip(condition.invars, (*inputs[:of_condition], *start), strict=True))
    counter, bound = condition.eqns[0].invars
    if counter not in condition.invars[of_condition:]:
        return None
    place = condition.invars.index(counter) - of_condition
    changing = [i for i, out in enumerate(body.outvars) if out is not body.invars[of_body + i]]
    if bound in [condition.invars[of_condition + i] for i in changing]:
        return None
    step = next((e for e in body.eqns if body.outvars[place] in e.outvars), None)
    if step is None or step.primitive.name != "add":
        return None
    if step.invars[0] is not body.invars[of_body + place]:
        return None
    numbers = [_number(start[place]), _number(step.invars[1])]
    last = _number(bound) if isinstance(bound, core.Literal) else _number(compared[bound])
    if last is None or None in numbers or numbers[1] <= 0:
        return None
    return max(0, -(-(last - numbers[0]) // numbers[1]))


def _number(atom: Any) -> Any:
    """The whole number that a literal holds; None where it holds none."""
    value: Any = getattr(atom, "val", getattr(atom, "value", None))
    try:
        return int(value) if int(value) == value else None
    except (TypeError, ValueError):
        return None


def _hashable(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value


def _places(values: tuple[Value, ...], among: set) -> frozenset[int]:
    return frozenset(i for i, value in enumerate(values) if value in among)
