"""A plan as a table: for a terminal, and as plain text."""

import math
from typing import Any

from innerloop.diagnostics.planning.amounts import format_bytes
from innerloop.gradients import gradient_name

HEADINGS = ("meta-gradient", "fidelity", "GFLOP", "memory: chunk", "verdict")


def plan_text(plan: Any) -> str:
    """Lines of plain text, the columns padded."""
    rows = [HEADINGS, *_rows(plan)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([summary(plan), "", *lines])


def plan_table(plan: Any) -> Any:
    """A rich table."""
    from rich.table import Table  # only here: a program that prints no plan need not load it

    table = Table(*HEADINGS, caption=summary(plan))
    for row, option in zip(_rows(plan), plan.options, strict=True):
        table.add_row(*row, style="bold" if option.verdict == "chosen" else None)
    return table


def summary(plan: Any) -> str:
    """What was chosen and what it will take, in one sentence."""
    chunk = f"all {plan.tasks}" if plan.chunk is None else f"{plan.chunk} of {plan.tasks}"
    return (
        f"{gradient_name(plan.gradient)}, {chunk} tasks at a time: {format_bytes(plan.memory)} of "
        f"{format_bytes(plan.budget)}, {plan.flops / 1e9:.3g} GFLOP. "
        f"{plan.compilations} compiled in {plan.seconds:.1f} s."
    )


def _rows(plan: Any) -> list[tuple[str, ...]]:
    return [_row(option, plan.tasks) for option in plan.options]


def _row(option: Any, tasks: int) -> tuple[str, ...]:
    tried = ", ".join(
        f"{format_bytes(size)}: {'all' if chunk == tasks else chunk}"
        for chunk, size in sorted(option.tried, reverse=True)
    )
    flops = "" if math.isnan(option.flops) else f"{option.flops / 1e9:.3g}"
    bound = "at least " if option.lower_bound else ""
    return gradient_name(option.gradient), option.kind, bound + flops, tried, option.verdict
