"""How a learned optimizer holds against tuned ones."""

from collections.abc import Iterator

import numpy as np

from innerloop.lab.experiments.optimizer_trials import LEARNED, PER_TASK
from innerloop.lab.experiments.printing import median_and_quartiles, trial_rows
from innerloop.lab.plots.style import BLUE, GREEN, GREY, INK, ORANGE, RED, spread_axis, step_axis
from innerloop.lab.report.blocks import Content, Figure, Figures, Note, TextTable
from innerloop.lab.report.drawing import draw
from innerloop.lab.report.runs import Run
from innerloop.lab.report.sections.common import of_runs
from innerloop.lab.report.trials import Trials

_LINES = {
    "SGD": (GREEN, "solid"),
    "momentum": (GREEN, "dashed"),
    "Adam": (ORANGE, "solid"),
    "AdamW": (RED, "dashed"),
    "Adam, cosine": (ORANGE, "dashed"),
    PER_TASK: (GREY, "dotted"),
    LEARNED: (BLUE, "solid"),
}


def optimizers(runs: list[Run]) -> Iterator[Content]:
    """Loss curves and a table of each evaluation; nothing for runs that learn no optimizer."""
    for run in runs:
        for trials in run.trials:
            yield from _of_trials(trials, of_runs([run], runs))


def _of_trials(trials: Trials, of_run: str) -> Iterator[Content]:
    yield Note(
        f"{trials.steps:,} inner steps on {trials.tasks:,} new tasks of each family (seed "
        f"{trials.seed}){of_run}. Every tuned optimizer has the best of its rates for the family, "
        f"found on other tasks; “{PER_TASK}” has the best for each very task, which no method "
        "could know. The curves are medians over tasks, with the quartiles of the learned one and "
        "of Adam. " + _count(trials)
    )
    title = f"in {trials.steps} steps{of_run}"
    yield Figures([], [_curves(family, each, title) for family, each in trials.curves.items()])
    rows = [
        [family, *row]
        for family, found in trials.families.items()
        for row in trial_rows(found, median_and_quartiles)
    ]
    yield TextTable(
        ["family", "optimizer", "last loss", "area", "rate"],
        rows,
        "Median over tasks (first to third quartile). Area: the mean loss over the run. Rate: the "
        "best for the last loss.",
    )


def _count(trials: Trials) -> str:
    """On how many families the learned one has the lower median than each."""
    parts = []
    for what, name in (("last loss", "final"), ("area", "area")):
        median = lambda found, label, name=name: float(found[label][name][1])
        known = [found for found in trials.families.values() if {LEARNED, "Adam"} <= set(found)]
        better = sum(median(found, LEARNED) < median(found, "Adam") for found in known)
        parts.append(f"{better} of {len(known)} by {what}")
    return f"Families on which the learned one is below tuned Adam: {', '.join(parts)} (medians)."


def _curves(family: str, found: dict[str, np.ndarray], title: str) -> Figure:
    def panel(axes):
        for label, curve in found.items():
            colour, dashes = _LINES.get(label, (INK, "solid"))
            low, middle, high = np.where(np.isfinite(curve), curve, np.nan)
            steps, wide = np.arange(len(middle)), label == LEARNED
            style = {"color": colour, "zorder": 3 if wide else 2}
            axes.plot(
                steps, middle, label=label, linestyle=dashes, lw=2.4 if wide else 1.3, **style
            )
            if wide or label == "Adam":  # the bands of all would hide each other
                axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        spread_axis(axes, np.concatenate([middle for _, middle, _ in found.values()]))
        axes.set(xlabel="inner step", ylabel="loss")
        step_axis(axes)
        axes.legend(loc="best", fontsize=7.5, ncols=2)

    return Figure(family, draw(f"loss on {family} {title}", panel))
