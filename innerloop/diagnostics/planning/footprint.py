"""How much room a program's intermediate values take, estimated from its trace.

A compiler's own figure is better, and `plan` compares that one with the budget. This estimate needs
no compilation: it tells which program to compile first.
"""

import math
from collections.abc import Hashable

from jax.extend import core

from innerloop.programs.flop_rules import DATA_MOVEMENT, is_elementwise
from innerloop.programs.straight_line import (
    Constant,
    Instruction,
    Needs,
    Program,
    Value,
)


def temporary_bytes(program: core.ClosedJaxpr) -> int:
    """The largest sum of sizes of the intermediate values that are alive at one time.

    In the order in which the program is written. Elementwise operations and moved data are taken to
    be fused into what reads them, unless that is a product, a reduction or a loop.
    """
    whole = Program(program.jaxpr)
    return _peak(whole, whole.everything, set(whole.inputs))


def _peak(program: Program, wanted: frozenset[int], given: set[Value]) -> int:
    steps = list(program.live(wanted))[::-1]
    sizes = _sizes(steps, given)
    last_use = _last_uses(steps, sizes, {program.outputs[i] for i in wanted})
    dying: dict[int, list[Value]] = {}
    for value, time in last_use.items():
        dying.setdefault(time, []).append(value)
    alive, peak = 0, 0
    for time, (instruction, needs) in enumerate(steps):
        alive += sum(sizes.get(value, 0) for value in instruction.outputs)
        peak = max(peak, alive + _inside(instruction, needs))
        alive -= sum(sizes.get(value, 0) for value in dying.get(time, ()))
    return peak


def _inside(instruction: Instruction, needs: Needs) -> int:
    """The peak within the programs that an instruction holds."""
    pairs = zip(instruction.bodies, needs.bodies, strict=True)
    return max((_peak(body, wanted, set(body.inputs)) for body, wanted in pairs), default=0)


def _sizes(steps: list, given: set[Value]) -> dict[Value, int]:
    """Bytes of every value that is written to memory; the others are parts of what reads them."""
    read_whole = {
        instruction.inputs[i]
        for instruction, needs in steps
        if not _is_fused(instruction)
        for i in needs.inputs
    }
    sizes: dict[Value, int] = {}
    for instruction, _ in steps:
        if instruction.equation is None or instruction.name in DATA_MOVEMENT:
            continue
        for value, variable in zip(instruction.outputs, instruction.equation.outvars, strict=True):
            if value not in given and (not _is_fused(instruction) or value in read_whole):
                sizes[value] = _bytes(variable)
    return sizes


def _last_uses(steps: list, sizes: dict[Value, int], kept: set[Value]) -> dict[Value, int]:
    """When each value is read for the last time, by way of values that are parts of what reads."""
    last: dict[Value, int] = dict.fromkeys(kept, len(steps))
    for time, (instruction, needs) in reversed(list(enumerate(steps))):
        end = time
        fused = [value for value in instruction.outputs if value not in sizes]
        if _is_fused(instruction) and fused:
            end = max(time, *(last.get(value, time) for value in fused))
        for value in instruction.outputs:
            last.setdefault(value, time)
        for i in needs.inputs:
            value: Hashable = instruction.inputs[i]
            if not isinstance(value, Constant):
                last[value] = max(last.get(value, end), end)
    return last


def _is_fused(instruction: Instruction) -> bool:
    if instruction.bodies:
        return False
    return instruction.equation is None or is_elementwise(instruction.name)


def _bytes(variable: core.Var) -> int:
    shape = getattr(variable.aval, "shape", ())
    dtype = getattr(variable.aval, "dtype", None)
    return math.prod(shape) * getattr(dtype, "itemsize", 4)
