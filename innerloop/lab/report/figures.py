"""The figures of a report: each draws the same quantity of every run into one set of axes."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from innerloop.lab.plots.curves import adaptation_panel, trained_line, validation_line
from innerloop.lab.plots.style import metric_axis, per_cent, spread_axis, step_axis
from innerloop.lab.report.blocks import Figure
from innerloop.lab.report.drawing import draw, run_colour, run_dashes
from innerloop.lab.report.runs import Run

_POINTS = 150
"""The most points of a curve. A longer one is drawn by mean, least and most of parts."""

_BINS = 25


def training_loss(runs: Sequence[Run]) -> Figure:
    """The loss of every outer step, in as many parts as can be told apart."""

    def panel(axes):
        lowest = []
        for run in runs:
            steps, mean, low, high = _thinned(run.losses)
            axes.plot(steps, mean, **_line(run))
            axes.fill_between(steps, low, high, **_band(run))
            lowest.append(low)
        spread_axis(axes, np.concatenate(lowest))
        axes.set(xlabel="outer step", ylabel="training loss")
        step_axis(axes)

    parts = max(-(-len(run.losses) // _POINTS) for run in runs)
    each = "every outer step" if parts == 1 else f"mean and range of up to {parts} outer steps each"
    return Figure("Training loss", draw("training loss by outer step", panel), each)


def validation_by_step(runs: Sequence[Run]) -> Figure:
    """The metric at each validation, by outer step."""
    return _validation(runs, "outer step", lambda run: run.validations.steps)


def validation_by_time(runs: Sequence[Run]) -> Figure:
    """The metric at each validation, by wall-clock time."""
    return _validation(runs, "minutes", lambda run: run.validations.minutes)


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
            style = {"bins": edges, "weights": np.full(len(end), 1 / len(end))} | _line(run)
            inside = np.minimum(end, edges[-1])
            axes.hist(inside, histtype="stepfilled", alpha=0.22, **style)
            axes.hist(inside, histtype="step", **style)
        axes.set(xlabel=metric, ylabel="share of tasks")
        metric_axis(axes.xaxis, metric)
        per_cent(axes.yaxis)

    title = f"Distribution of {metric} over tasks"
    caption = "after the last inner step; the last bar holds the highest 1% of tasks too"
    return Figure(title, draw(title, panel), caption)


def gradient_norm(runs: Sequence[Run]) -> Figure:
    """The norm of the meta-gradient over outer steps."""

    def panel(axes):
        for run in runs:
            axes.plot(*run.norms, **_line(run), marker="o", markersize=3)
        spread_axis(axes, np.concatenate([run.norms[1] for run in runs]))
        axes.set(xlabel="outer step", ylabel="norm of the meta-gradient")
        step_axis(axes)

    caption = "mean over each call to the device"
    return Figure("Norm of the meta-gradient", draw("gradient norm by outer step", panel), caption)


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


def _validation(runs: Sequence[Run], along: str, where: Callable[[Run], np.ndarray]) -> Figure:
    metric = runs[0].metric

    def panel(axes):
        for run in runs:
            values, half = run.validations.values, run.validations.intervals
            validation_line(axes, where(run), values, metric, along=along, **_line(run))
            axes.fill_between(where(run), values - half, values + half, **_band(run))
        if np.isfinite(axes.dataLim.x1):  # It is infinite where no score is finite.
            axes.set_xlim(0, 1.04 * axes.dataLim.x1)
        if along == "outer step":
            step_axis(axes)

    title = f"Validation {metric} by {along}"
    return Figure(title, draw(title, panel), "mean over tasks and its 95% interval")


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


def _thinned(values: np.ndarray) -> tuple[np.ndarray, ...]:
    """The last steps of the parts, and the mean, least and most of their finite values."""
    parts = np.array_split(values, min(len(values), _POINTS))
    ends = np.cumsum([len(part) for part in parts])
    known = [finite(part) if np.isfinite(part).any() else np.array([np.nan]) for part in parts]
    summary = np.array([(part.mean(), part.min(), part.max()) for part in known])
    return ends, *summary.T
