"""What the meta-gradient and the machine did."""

from collections.abc import Iterator

from innerloop.diagnostics.planning.amounts import format_bytes
from innerloop.lab.report import figures, text
from innerloop.lab.report.blocks import Block, Figures, Note, NotRecorded, Table
from innerloop.lab.report.runs import Run
from innerloop.lab.report.sections.common import NONE, by_run, of_runs, split

_FAULTS = 20
"""Rows of the table of outer steps that were not finite."""


def gradient(runs: list[Run]) -> Iterator[Block]:
    """Norm, non-finite steps, and leaves that no gradient reaches."""
    normed, missing = split(runs, lambda run: len(run.norms[0]))
    if normed:
        yield Figures(runs, [figures.gradient_norm(normed)])
    if missing:
        yield NotRecorded("the norm of the meta-gradient", missing)
    faulty, sound = split(runs, lambda run: run.faults)
    for run in faulty:
        names = list(dict.fromkeys(name for fault in run.faults for name in fault))
        first = run.faults[:_FAULTS]
        rows = [[text.setting(fault.get(name)) for name in names] for fault in first]
        shown = f", the first {_FAULTS} of {len(run.faults):,}" * (len(run.faults) > _FAULTS)
        yield Table(names, rows, f"Outer steps that were not finite{of_runs([run], runs)}{shown}")
    if sound:
        yield Note(f"Outer steps that were not finite: none in the log{of_runs(sound, runs)}.")
    told, missing = split(runs, lambda run: run.cost.unreached is not None)
    for run in told:
        leaves = ", ".join(run.cost.unreached or ()) or "none"
        yield Note(f"Meta-parameters that no gradient reaches: {leaves}{of_runs([run], runs)}.")
    if missing:
        yield NotRecorded("which meta-parameters a gradient reaches", missing)


def cost(runs: list[Run]) -> Iterator[Block]:
    """Time, compilation, memory and operations."""
    yield by_run(runs, [_cost_cells(run) for run in runs])
    yield Note(
        "The time of an outer step is the median over calls to the device, without tracing and "
        "compilation. Operations are those of the meta-gradient, counted from the program."
    )


def _cost_cells(run: Run) -> dict[str, str]:
    known = lambda show, number: NONE if number is None else show(number)
    cost, seconds = run.cost, run.cost.seconds_per_step
    per_second = lambda amount: amount / seconds if amount and seconds else None
    rate = lambda amount: f"{text.operations(amount)}/s"
    at_least = "at least " * (cost.flops_are_lower_bound and cost.flops_per_step is not None)
    return {
        "wall time": text.duration(60 * run.minutes) if run.outer_steps else NONE,
        "time per outer step": known(text.duration, seconds),
        "tasks per second": known("{:,.0f}".format, per_second(run.batch)),
        "compilation": known(text.duration, cost.compile_seconds),
        "peak memory": known(format_bytes, cost.peak_memory_bytes),
        "operations per outer step": at_least + known(text.operations, cost.flops_per_step),
        "operations per second": at_least + known(rate, per_second(cost.flops_per_step)),
    }
