"""The figures of a report, each of one quantity, with a line for every run or optimizer."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from innerloop.lab.experiments.curves import Log
from innerloop.lab.experiments.optimizer_trials import LEARNED, PER_TASK
from innerloop.lab.plots import style
from innerloop.lab.plots.curves import adaptation_panel, trained_line, validation_line
from innerloop.lab.report.blocks import Figure
from innerloop.lab.report.drawing import draw, run_colour, run_dashes
from innerloop.lab.report.runs import Run

_POINTS = 150
"""The most points of a curve. A longer one is drawn by mean, least and most of parts."""

_BINS = 25

_OPTIMIZERS = {
    "SGD": (style.GREEN, "solid"),
    "momentum": (style.GREEN, "dashed"),
    "Adam": (style.ORANGE, "solid"),
    "AdamW": (style.RED, "dashed"),
    "Adam, cosine": (style.ORANGE, "dashed"),
    PER_TASK: (style.GREY, "dotted"),
    LEARNED: (style.BLUE, "solid"),
}
"""The colour and the line style of each optimizer."""


def training_loss(runs: Sequence[Run]) -> Figure:
    """The loss of every outer step, in as many parts as can be told apart."""

    def panel(axes):
        lowest = []
        for run in runs:
            steps, mean, low, high = _thinned(run.log)
            axes.plot(steps, mean, **_line(run))
            axes.fill_between(steps, low, high, **_band(run))
            lowest.append(low)
        style.spread_axis(axes, np.concatenate(lowest))
        axes.set(xlabel="outer step", ylabel="training loss")
        style.step_axis(axes)

    parts = max(-(-len(run.log.losses) // _POINTS) for run in runs)
    each = "every outer step" if parts == 1 else f"mean and range of up to {parts} outer steps each"
    return Figure("Training loss", draw("training loss by outer step", panel), each)


def validation(runs: Sequence[Run], metric: str, along: Literal["outer step", "minutes"]) -> Figure:
    """The metric at each validation, by outer step or by wall-clock time."""
    by_step = along == "outer step"

    def panel(axes):
        for run in runs:
            steps, minutes, scores, half = run.log.validations
            at = steps if by_step else minutes
            validation_line(axes, at, scores, metric, along=along, **_line(run))
            axes.fill_between(at, scores - half, scores + half, **_band(run))
        if np.isfinite(axes.dataLim.x1):  # It is infinite where no score is finite.
            axes.set_xlim(0, 1.04 * axes.dataLim.x1)
        if by_step:
            style.step_axis(axes)

    title = f"Validation {metric} by {along}"
    return Figure(title, draw(title, panel), "mean over tasks and its 95% interval")


def adaptation(runs: Sequence[Run], metric: str) -> Figure:
    """A metric of the test tasks by inner step, with intervals over tasks."""

    def panel(axes):
        for run in runs:
            mean, half = run.test.mean[metric], run.test.interval[metric]
            adaptation_panel(axes, mean, mean - half, mean + half, metric, **_line(run))
        _trained_lines(axes, runs)

    title = f"Test {metric} by inner step"
    return Figure(title, draw(title, panel), "mean over tasks and its 95% interval")


def quantiles(runs: Sequence[Run], metric: str) -> Figure:
    """The spread over tasks, by inner step."""

    def panel(axes):
        for run in runs:
            columns = [finite(column) for column in run.per_task[metric].T]
            low, middle, high = np.transpose([_quantiles(column) for column in columns])
            adaptation_panel(axes, middle, low, high, metric, **_line(run))
        _trained_lines(axes, runs)

    title = f"Spread of {metric} over tasks"
    return Figure(title, draw(title, panel), "median task, and the middle 90% of tasks")


def histogram(runs: Sequence[Run], metric: str) -> Figure:
    """The distribution over tasks after the last inner step."""
    ends = [finite(run.per_task[metric][:, -1]) for run in runs]
    edges = _edges(np.concatenate(ends))

    def panel(axes):
        for run, end in zip(runs, ends, strict=True):
            bars = {"bins": edges, "weights": np.full(len(end), 1 / len(end))} | _line(run)
            inside = np.minimum(end, edges[-1])
            axes.hist(inside, histtype="stepfilled", alpha=0.22, **bars)
            axes.hist(inside, histtype="step", **bars)
        axes.set(xlabel=metric, ylabel="share of tasks")
        style.metric_axis(axes.xaxis, metric)
        style.per_cent(axes.yaxis)

    title = f"Distribution of {metric} over tasks"
    caption = "after the last inner step; the last bar holds the highest 1% of tasks too"
    return Figure(title, draw(title, panel), caption)


def gradient_norm(runs: Sequence[Run]) -> Figure:
    """The norm of the meta-gradient over outer steps."""

    def panel(axes):
        for run in runs:
            axes.plot(*run.log.norms, **_line(run), marker="o", markersize=3)
        style.spread_axis(axes, np.concatenate([run.log.norms[1] for run in runs]))
        axes.set(xlabel="outer step", ylabel="norm of the meta-gradient")
        style.step_axis(axes)

    caption = "mean over each call to the device"
    return Figure("Norm of the meta-gradient", draw("gradient norm by outer step", panel), caption)


def tuned_curves(family: str, found: dict[str, dict[str, Any]], title: str) -> Figure:
    """The median loss of each optimizer by inner step.

    Args:
        family: The name of the family.
        found: By optimizer, what `trial_record` gives.
        title: The rest of the figure's title.
    """
    curves = {name: np.asarray(each["curve"], float) for name, each in found.items()}

    def panel(axes):
        for label, curve in curves.items():
            colour, dashes = _OPTIMIZERS.get(label, (style.INK, "solid"))
            low, middle, high = np.where(np.isfinite(curve), curve, np.nan)
            steps, wide = np.arange(len(middle)), label == LEARNED
            line = {"color": colour, "zorder": 3 if wide else 2}
            width = 2.4 if wide else 1.3
            axes.plot(steps, middle, label=label, linestyle=dashes, linewidth=width, **line)
            if wide or label == "Adam":  # The bands of all would hide each other.
                axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        style.spread_axis(axes, np.concatenate([middle for _, middle, _ in curves.values()]))
        axes.set(xlabel="inner step", ylabel="loss")
        style.step_axis(axes)
        axes.legend(loc="best", fontsize=7.5, ncols=2)

    return Figure(family, draw(f"loss on {family} {title}", panel))


def finite(values: np.ndarray) -> np.ndarray:
    """The values that are finite."""
    return values[np.isfinite(values)]


def _line(run: Run) -> dict[str, str]:
    return {"color": run_colour(run.place), "linestyle": run_dashes(run.place)}


def _band(run: Run) -> dict[str, str | float]:
    return {"color": run_colour(run.place), "alpha": 0.18, "linewidth": 0}


def _trained_lines(axes, runs: Sequence[Run]) -> None:
    trained = {run.trained_steps for run in runs if run.trained_steps is not None}
    for steps in sorted(trained):
        trained_line(axes, steps)
    if trained:
        axes.legend(loc="best")


def _quantiles(values: np.ndarray) -> np.ndarray:
    return np.quantile(values, (0.05, 0.5, 0.95)) if len(values) else np.full(3, np.nan)


def _edges(values: np.ndarray) -> np.ndarray:
    """Edges of bins for about the lower 99%: one outlier would leave one bar for the rest.

    Their width is a multiple of the step between values, such as one query of 75 right or wrong.
    """
    low, high = np.quantile(values, (0, 0.99))
    width = (high - low) or 1.0
    digits = 4 - math.floor(math.log10(width))
    steps = np.diff(np.unique((values[values <= high] - low).round(digits)))
    step = steps.min() if len(steps) else width
    width = step * math.ceil(width / step / _BINS)
    return low - step / 2 + width * np.arange(math.ceil((high - low + step) / width) + 1)


def _thinned(log: Log) -> tuple[np.ndarray, ...]:
    """Parts of the losses: their last steps, and mean, minimum and maximum of the finite losses."""
    n = min(len(log.losses), _POINTS)
    ends = np.array([part[-1] for part in np.array_split(log.steps, n)])
    parts = np.array_split(log.losses, n)
    known = [finite(part) if np.isfinite(part).any() else np.array([np.nan]) for part in parts]
    summary = np.array([(part.mean(), part.min(), part.max()) for part in known])
    return ends, *summary.T
