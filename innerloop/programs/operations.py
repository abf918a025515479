"""The operations of a traced program, and the programs that they run."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from jax.extend import core

_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
"""Names of the parameter that holds the program in primitives that only call one."""


class Operation(NamedTuple):
    """An operation of a traced program, and the calls that contain it, innermost first."""

    eqn: core.JaxprEqn
    callers: tuple[core.JaxprEqn, ...]

    @property
    def name(self) -> str:
        """The name of its primitive."""
        return self.eqn.primitive.name


class Inside(NamedTuple):
    """The programs that an operation runs, and how their arguments relate to its own.

    Attributes:
        kind: `"call"` runs one program on the operation's arguments; `"scan"` a body whose
            arguments are constants, carry and rows; `"while"` a condition and a body, each with its
            own constants, on one carry; `"cond"` one of several branches, chosen by the first
            argument; `"solve"` the solver of a linear system, by a rule of JAX's own.
        programs: The called program; the body; condition and body; the branches; the solver.
        constants: For each program, how many of its arguments stay constant in a loop.
        carry: How many values a loop carries from one turn to the next.
    """

    kind: Literal["call", "scan", "while", "cond", "solve"]
    programs: tuple[core.ClosedJaxpr, ...]
    constants: tuple[int, ...] = ()
    carry: int = 0


def operations(jaxpr: core.Jaxpr, callers: tuple[core.JaxprEqn, ...] = ()) -> Iterator[Operation]:
    """All operations, each followed by those of the programs that it holds and may run."""
    for eqn in jaxpr.eqns:
        yield Operation(eqn, callers)
        for param in eqn.params.values():
            for value in param if isinstance(param, list | tuple) else [param]:
                held = getattr(value, "jaxpr", value)
                if isinstance(held, core.Jaxpr):
                    yield from operations(held, (eqn, *callers))


def inside(eqn: core.JaxprEqn) -> Inside | None:
    """The programs that an operation runs; None if it runs none or in an unknown way."""
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        constants, carry = _scan_counts(params)
        return Inside("scan", (params["jaxpr"],), (constants,), carry)
    if name == "while":
        constants = params["cond_nconsts"], params["body_nconsts"]
        carry = len(eqn.invars) - sum(constants)
        return Inside("while", (params["cond_jaxpr"], params["body_jaxpr"]), constants, carry)
    if name == "cond":
        return Inside("cond", tuple(params["branches"]))
    if name == "custom_linear_solve":  # it also holds the solver of the transposed system
        return Inside("solve", (params["jaxprs"].solve,))
    for parameter in _CALLS:
        program = _closed(params.get(parameter))
        if program is not None and shapes(program.jaxpr.invars) == shapes(eqn.invars):
            return Inside("call", (program,))
    return None


def shapes(atoms: Sequence) -> list[tuple[int, ...]]:
    """The shapes of values; those that have none, such as tokens, count as scalars."""
    return [getattr(atom.aval, "shape", ()) for atom in atoms]


def _closed(program: Any) -> core.ClosedJaxpr | None:
    if isinstance(program, core.Jaxpr):
        return core.ClosedJaxpr(program, ())
    return program if isinstance(program, core.ClosedJaxpr) else None


def _scan_counts(params: dict) -> tuple[int, int]:
    """How many constants and how many carried values precede the rows of a scan."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    constants, carry, _ = params["ft_in"].unpack()  # from jax 0.11 on
    return len(list(constants)), len(list(carry))
