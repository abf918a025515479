"""What the sections share."""

from collections.abc import Callable, Sequence
from typing import Any

from innerloop.lab.report.blocks import Pairs, TextTable
from innerloop.lab.report.runs import Run

NONE = "not recorded"


def split(runs: Sequence[Run], has: Callable[[Run], Any]) -> tuple[list[Run], list[Run]]:
    """Those that have something, and those that have not."""
    return [run for run in runs if has(run)], [run for run in runs if not has(run)]


def by_run(runs: Sequence[Run], columns: Sequence[dict[str, str]]) -> Pairs | TextTable:
    """Names and values: a column for each of several runs."""
    if len(runs) == 1:
        return Pairs(list(columns[0].items()))
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(column.get(name, NONE) for column in columns)] for name in names]
    return TextTable(["", *(run.name for run in runs)], rows)


def by_metric(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that are judged by one metric can share axes."""
    metrics = dict.fromkeys(run.metric for run in runs)
    return [[run for run in runs if run.metric == metric] for metric in metrics]


def with_metric(runs: Sequence[Run], name: str) -> list[Run]:
    """Those whose test has a metric of this name."""
    return [run for run in runs if name in run.test.mean]


def of_runs(some: Sequence[Run], runs: Sequence[Run]) -> str:
    """Which runs, where there are others beside them."""
    return f" ({', '.join(run.name for run in some)})" if len(runs) > 1 else ""
