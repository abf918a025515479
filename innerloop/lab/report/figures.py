"""The figures of a report: each draws the same of every run into one set of axes."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from innerloop.lab.plots.adaptation_curve import adaptation_panel, trained_line
from innerloop.lab.plots.style import metric_axis, per_cent, spread_axis, step_axis
from innerloop.lab.plots.validation_over_time import validation_line
from innerloop.lab.report.blocks import Figure
from innerloop.lab.report.drawing import draw, run_colour, run_dashes
from innerloop.lab.report.runs import Run

_POINTS = 150
"""Points of a curve: a longer one is drawn by the mean, the least and the most of each part."""

_BINS = 25


def training_loss(runs: Sequence[Run]) -> Figure:
    """The loss of every outer step, in as many parts as can be told apart."""

    def panel(axes):
        drawn = [_thinned(run.losses) for run in runs]
        for run, (steps, mean, low, high) in zip(runs, drawn, strict=True):
            axes.plot(steps, mean, **_line(run))
            axes.fill_between(
                steps, low, high, color=run_colour(run.place), alpha=0.18, linewidth=0
            )
        spread_axis(axes, np.concatenate([low for _, _, low, _ in drawn]))
        axes.set(xlabel="outer step", ylabel="training loss")
        step_axis(axes)

    parts = max(-(-len(run.losses) // _POINTS) for run in runs)
    each = "every outer step" if parts == 1 else f"mean and range of up to {parts} outer steps each"
    return Figure("Training loss", draw("training loss by outer step", panel), each)


def validation_by_step(runs: Sequence[Run]) -> Figure:
    """The metric at each validation."""
    return _validation(runs, "outer step", lambda run: run.validations.steps)


def validation_by_time(runs: Sequence[Run]) -> Figure:
    """The same against wall-clock."""
    return _validation(runs, "minutes", lambda run: run.validations.minutes)


def adaptation(runs: Sequence[Run], metric: str) -> Figure:
    """A metric of the test tasks by inner step, with intervals over tasks."""

    def panel(axes):
        for run in runs:
            mean, half = run.test.mean[metric], run.test.interval[metric]
            _band(axes, run, mean, mean - half, mean + half, metric)
        _trained_lines(axes, runs)

    title = f"Test {metric} by inner step"
    return Figure(title, draw(title, panel), "mean over tasks and its 95% interval")


def quantiles(runs: Sequence[Run], metric: str) -> Figure:
    """How the tasks spread, by inner step."""

    def panel(axes):
        for run in runs:
            columns = [_finite(column) for column in run.per_task[metric].T]
            low, middle, high = np.transpose([_quantiles(column) for column in columns])
            _band(axes, run, middle, low, high, metric)
        _trained_lines(axes, runs)

    title = f"Spread of {metric} over tasks"
    return Figure(title, draw(title, panel), "median task, and the middle 90% of tasks")


def histogram(runs: Sequence[Run], metric: str) -> Figure:
    """How many tasks end where, after the last inner step."""
    ends = [_finite(run.per_task[metric][:, -1]) for run in runs]
    edges = _edges(np.concatenate(ends))

    def panel(axes):
        for run, end in zip(runs, ends, strict=True):
            share = np.full(len(end), 1 / len(end))
            style = {"bins": edges, "weights": share, "color": run_colour(run.place)}
            inside = np.minimum(end, edges[-1])
            axes.hist(inside, histtype="stepfilled", alpha=0.22, **style)
            axes.hist(inside, histtype="step", linestyle=run_dashes(run.place), **style)
        axes.set(xlabel=metric, ylabel="share of tasks")
        metric_axis(axes.xaxis, metric)
        per_cent(axes.yaxis)

    title = f"Distribution of {metric} over tasks"
    caption = "after the last inner step; the last bar holds the highest 1% of tasks too"
    return Figure(title, draw(title, panel), caption)


def gradient_norm(runs: Sequence[Run]) -> Figure:
    """The meta-gradient's norm over outer steps."""

    def panel(axes):
        for run in runs:
            axes.plot(*run.norms, **_line(run), marker="o", markersize=3)
        spread_axis(axes, np.concatenate([run.norms[1] for run in runs]))
        axes.set(xlabel="outer step", ylabel="norm of the meta-gradient")
        step_axis(axes)

    caption = "mean over each call to the device"
    return Figure("Norm of the meta-gradient", draw("gradient norm by outer step", panel), caption)


def _line(run: Run) -> dict:
    return {"color": run_colour(run.place), "linestyle": run_dashes(run.place)}


def _band(axes, run: Run, centre, low, high, metric: str) -> None:
    colour, dashes = run_colour(run.place), run_dashes(run.place)
    adaptation_panel(axes, centre, low, high, metric, colour=colour, linestyle=dashes)


def _interval(axes, run: Run, at: np.ndarray) -> None:
    values, half = run.validations.values, run.validations.intervals
    colour = run_colour(run.place)
    axes.fill_between(at, values - half, values + half, color=colour, alpha=0.18, linewidth=0)


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
            colour, dashes = run_colour(run.place), run_dashes(run.place)
            line = {"along": along, "colour": colour, "linestyle": dashes}
            validation_line(axes, where(run), run.validations.values, metric, **line)
            _interval(axes, run, where(run))
        if np.isfinite(axes.dataLim.x1):  # it is not where no score is
            axes.set_xlim(0, 1.04 * axes.dataLim.x1)
        if along == "outer step":
            step_axis(axes)

    title = f"Validation {metric} by {along}"
    return Figure(title, draw(title, panel), "mean over tasks and its 95% interval")


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _quantiles(values: np.ndarray) -> np.ndarray:
    return np.quantile(values, (0.05, 0.5, 0.95)) if len(values) else np.full(3, np.nan)


def _edges(values: np.ndarray) -> np.ndarray:
    """Bins for about the lower 99%: one task that went astray would leave one bar for the rest.

    Their width is a multiple of the step between values, such as one query of 75 right or wrong.
    """
    low, high = np.quantile(values, (0, 0.99))
    width = (high - low) or 1.0
    steps = np.diff(np.unique((values[values <= high] - low).round(4 - _magnitude(width))))
    step = steps.min() if len(steps) else width
    width = step * math.ceil(width / step / _BINS)
    return low - step / 2 + width * np.arange(math.ceil((high - low + step) / width) + 1)


def _magnitude(number: float) -> int:
    """The power of ten that it begins with."""
    return math.floor(math.log10(number))


def _thinned(values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Last steps of the parts, and their mean, least and most; what is not finite left out."""
    parts = np.array_split(values, min(len(values), _POINTS))
    ends = np.cumsum([len(part) for part in parts])
    known = [_finite(part) if np.isfinite(part).any() else np.array([np.nan]) for part in parts]
    summary = np.array([(part.mean(), part.min(), part.max()) for part in known])
    return ends, *summary.T
