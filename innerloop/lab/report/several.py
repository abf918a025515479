"""Blocks about several runs: those that have something, a column for each, and their names."""

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

from innerloop.lab.report.blocks import Content, Missing, Pairs, TextTable
from innerloop.lab.report.runs import Run

NOT_RECORDED = "not recorded"


def having(
    runs: Sequence[Run], has: Callable[[Run], Any], what: str
) -> Generator[Content, None, list[Run]]:
    """Returns the runs that have something, and yields a note about those that do not."""
    missing = [run for run in runs if not has(run)]
    if missing:
        yield Missing(f"{what}{of_runs(missing, runs)}")
    return [run for run in runs if has(run)]


def by_run(runs: Sequence[Run], entries: Callable[[Run], dict[str, str]]) -> Pairs | TextTable:
    """Names and values, with a column for each of several runs."""
    columns = [entries(run) for run in runs]
    if len(runs) == 1:
        return Pairs(list(columns[0].items()))
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(column.get(name, NOT_RECORDED) for column in columns)] for name in names]
    return TextTable(["", *(run.name for run in runs)], rows)


def by_name(
    runs: Sequence[Run], names: Callable[[Run], Iterable[str]]
) -> list[tuple[str, list[Run]]]:
    """Each of the names, and the runs that have it."""
    known = dict.fromkeys(name for run in runs for name in names(run))
    return [(name, [run for run in runs if name in names(run)]) for name in known]


def by_metric(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Each metric by which runs are judged, and its runs, which can share axes."""
    return by_name(runs, lambda run: [run.metric])


def of_runs(some: Sequence[Run], runs: Sequence[Run]) -> str:
    """The names of some runs, if there are others besides."""
    return f" ({', '.join(run.name for run in some)})" if len(runs) > 1 else ""
