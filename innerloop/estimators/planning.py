"""A budget of memory for an outer step: what the trainer holds itself, and a plan for the rest."""

from typing import Any

from jaxtyping import PyTree

from innerloop.adaptation import Adaptation
from innerloop.diagnostics import Plan, plan
from innerloop.diagnostics.amounts import format_bytes, parse_bytes
from innerloop.errors import StructureError
from innerloop.gradients import Implicit, MetaGradient
from innerloop.problem import Episode, Problem
from innerloop.trees import tree_bytes


def planned(
    problem: Problem,
    adaptation: Adaptation,
    gradient: MetaGradient,
    meta: PyTree,
    episodes: Episode,
    memory: Any,
    chunk: int | None,
    held: int,
) -> Plan:
    """The plan for one outer step, with what is left of a budget beside the trainer's own state.

    An exact meta-gradient may be replaced by another exact one. A biased or a stochastic one is
    kept, and `Implicit` too, and only the chunk is planned.

    Args:
        problem: What is optimised.
        adaptation: How one task is learned.
        gradient: The meta-gradient that was asked for.
        meta: The meta-parameters, or their shapes.
        episodes: The batch of one device, or its shapes.
        memory: The budget.
        chunk: Must be None: it is what is planned.
        held: Bytes that the trainer and the task distribution keep.

    Raises:
        StructureError: A chunk is given, or the budget is too small.
    """
    if chunk is not None:
        raise StructureError(
            "a chunk is chosen either by hand or by a budget",
            got=f"WholeTasks(..., chunk={chunk}) and fit(..., memory=...)",
            expected="one of the two",
            write=f"fit(..., memory='2GiB') with WholeTasks(...) alone, or WholeTasks(..., "
            f"chunk={chunk}) without a budget",
        )
    budget = parse_bytes(memory)
    rest = budget - held + tree_bytes(meta)  # which the plan counts itself
    if rest <= 0:
        raise StructureError(
            "the budget does not hold what the trainer keeps",
            got=f"memory={format_bytes(budget)}",
            expected=f"more than {format_bytes(held)}: meta-parameters, their average and the "
            "optimizer's state, before and after a step, and the tasks' own arrays",
            write="fit(..., memory='2GiB')",
        )
    exact = gradient.fidelity(adaptation, problem).kind == "exact"
    kept = None if exact and not isinstance(gradient, Implicit) else [gradient]
    return plan(problem, adaptation, meta, episodes, rest, gradients=kept)
