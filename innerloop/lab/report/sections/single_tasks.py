"""How single test tasks came out."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from innerloop.lab.report import figures, text
from innerloop.lab.report.blocks import Content, Figures, Note, NotRecorded
from innerloop.lab.report.runs import Run
from innerloop.lab.report.sections.common import NONE, by_metric, by_run, of_runs, split


def spread(runs: list[Run]) -> Iterator[Content]:
    """How single test tasks come out."""
    known, missing = split(runs, lambda run: run.metric in run.per_task)
    for same in by_metric(known):
        metric = same[0].metric
        drawn = [run for run in same if len(_ends(run))]
        if drawn:
            both = [figures.histogram(drawn, metric), figures.quantiles(drawn, metric)]
            yield Figures(runs, both)
        yield Note(f"{metric} after the last inner step:")
        yield by_run(same, [_quantiles(run) for run in same])
    if missing:
        yield NotRecorded("the metrics of single test tasks", missing)


def _quantiles(run: Run) -> dict[str, str]:
    finite = _ends(run)
    shown = {"5% of tasks are below": 0.05, "median task": 0.5, "95% of tasks are below": 0.95}
    at = lambda share: text.value(np.quantile(finite, share), run.metric) if len(finite) else NONE
    counted = {"tasks that are not finite": f"{len(run.per_task[run.metric]) - len(finite):,}"}
    return {name: at(share) for name, share in shown.items()} | counted


def _ends(run: Run) -> np.ndarray:
    """The metric after the last inner step, of the tasks where it is finite."""
    ends = run.per_task[run.metric][:, -1]
    return ends[np.isfinite(ends)]


def examples(runs: list[Run]) -> Iterator[Content]:
    """Pictures of single test tasks."""
    pictured, missing = split(runs, lambda run: run.pictures)
    for run in pictured:
        for picture in run.pictures:
            yield replace(picture, title=f"{picture.title}{of_runs([run], runs)}")
    if missing:
        yield NotRecorded("pictures of single tasks", missing)
