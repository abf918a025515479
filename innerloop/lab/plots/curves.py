"""Curves of a run: training loss and validation over time, and the metric by inner step."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from innerloop.lab.plots import style


def learning_curve(
    path: str | os.PathLike[str],
    *,
    steps: ArrayLike,
    losses: ArrayLike,
    validation_steps: ArrayLike,
    validation: ArrayLike,
    metric: str,
    title: str,
) -> Path:
    """Draw the training loss and the validation metric over outer steps, side by side.

    The losses are drawn raw and as the mean of the latest fiftieth of the points, on a logarithmic
    axis if all losses are positive and span more than a decade. Losses that are not finite are left
    out. The best validation is marked: the highest accuracy, the lowest value of another metric.
    Without validations there is no second panel.

    Args:
        path: The PNG file to write. Missing folders are made.
        steps: Outer steps, `(n,)`.
        losses: The training loss at each of them, `(n,)`.
        validation_steps: Outer steps of the validations, `(m,)`.
        validation: The metric at each validation, `(m,)`.
        metric: The name of the metric. If it contains "accuracy", it is shown in per cent.
        title: The title of the figure.

    Returns:
        `path`.

    Raises:
        StructureError: If there is no loss, or lengths differ.
    """
    x, y = style.pair(steps=steps, losses=losses)
    at, scores = style.pair(validation_steps=validation_steps, validation=validation)
    if not len(x):
        raise style.nothing("losses")
    y = np.where(np.isfinite(y), y, np.nan)
    window = max(1, len(y) // 50)
    panels = 2 if len(at) else 1
    with style.new_figure(path, (5.2 * panels, 3.9)) as (figure, done):
        left, *right = figure.subplots(1, panels, sharex=True, squeeze=False)[0]
        figure.suptitle(title)
        if window == 1:
            left.plot(x, y, color=style.BLUE, marker="." if len(x) < 30 else None)
        else:
            left.plot(x, y, color=style.BLUE, alpha=0.3, linewidth=0.7, label="each step")
            label = f"mean of the last {window}"
            left.plot(x, _running_mean(y, window), color=style.BLUE, label=label)
            left.legend(loc="upper right")
        style.spread_axis(left, y)
        left.set(xlabel="outer step", ylabel="training loss")
        for axes in right:
            _validation_panel(axes, at, scores, metric)
        style.step_axis(left)
        return done()


def validation_over_time(
    path: str | os.PathLike[str],
    *,
    minutes: ArrayLike,
    validation: ArrayLike,
    metric: str,
    title: str,
) -> Path:
    """Draw the validation metric against wall-clock time, compilation included.

    Args:
        path: The PNG file to write. Missing folders are made.
        minutes: The time of each validation, `(n,)`.
        validation: The metric at each validation, `(n,)`.
        metric: The name of the metric. If it contains "accuracy", it is shown in per cent.
        title: The title of the figure.

    Returns:
        `path`.

    Raises:
        StructureError: If lengths differ.
    """
    at, scores = style.pair(minutes=minutes, validation=validation)
    with style.new_figure(path, (6.2, 4.0)) as (figure, done):
        figure.suptitle(title)
        _validation_panel(
            figure.subplots(), at, scores, metric, along="minutes", where="{:.1f} min"
        )
        return done()


def adaptation_curve(
    path: str | os.PathLike[str],
    *,
    mean: ArrayLike,
    interval: ArrayLike,
    metric: str,
    trained_steps: int,
    title: str,
) -> Path:
    """Draw the metric by number of inner steps, from 0 (before adaptation) to K.

    Args:
        path: The PNG file to write. Missing folders are made.
        mean: The metric after 0, 1, …, K inner steps, averaged over tasks, `(K + 1,)`.
        interval: Half the width of its 95% confidence interval, `(K + 1,)`; the band that is drawn
            is `mean ± interval`.
        metric: The name of the metric. If it contains "accuracy", it is shown in per cent.
        trained_steps: The inner steps of meta-training, drawn as a vertical dotted line.
        title: The title of the figure.

    Returns:
        `path`.

    Raises:
        StructureError: If lengths differ.
    """
    centre, half = style.pair(mean=mean, interval=interval)
    with style.new_figure(path, (6.2, 4.0)) as (figure, done):
        axes = figure.subplots()
        figure.suptitle(title)
        labels = ("mean over tasks", "95% interval")
        adaptation_panel(axes, centre, centre - half, centre + half, metric, labels=labels)
        trained_line(axes, trained_steps)
        axes.legend(loc="best")
        return done()


def adaptation_panel(
    axes, centre, low, high, metric, *, color=style.BLUE, labels=(None, None), **line
):
    """Draw the metric by number of inner steps: a line, and a band from `low` to `high`."""
    inner = np.arange(len(centre))
    marker = "o" if len(inner) <= 30 else None
    axes.plot(inner, centre, color=color, marker=marker, markersize=5, label=labels[0], **line)
    axes.fill_between(inner, low, high, color=color, alpha=0.2, linewidth=0, label=labels[1])
    axes.set(xlabel="inner steps", ylabel=metric)
    axes.locator_params(axis="x", nbins=10, integer=True)
    style.metric_axis(axes.yaxis, metric)


def trained_line(axes, trained_steps: int):
    """Mark the inner steps of meta-training."""
    label = f"meta-trained with {trained_steps} step{'s' * (trained_steps != 1)}"
    axes.axvline(trained_steps, color=style.INK, linestyle=":", linewidth=1.4, label=label)


def validation_line(axes, at, scores, metric, *, along, color=style.ORANGE, **line):
    """Draw the validation metric; `along` is the label of the horizontal axis."""
    axes.plot(at, scores, color=color, marker="o", markersize=5, **line)
    axes.set(xlabel=along, ylabel=f"validation {metric}")
    style.metric_axis(axes.yaxis, metric)


def _validation_panel(axes, at, scores, metric, *, along="outer step", where="step {:,.0f}"):
    """Draw the metric, and write at the best point its value and `where` it is."""
    validation_line(axes, at, scores, metric, along=along)
    axes.margins(y=0.2)  # Room for the label, on the side where no other point can be.
    higher_is_better = style.is_fraction(metric)
    usable = np.flatnonzero(np.isfinite(scores))
    if not len(usable):
        return
    best = usable[np.argmax(scores[usable] if higher_is_better else -scores[usable])]
    point = (at[best], scores[best])
    axes.plot(*point, marker="o", markersize=11, color=style.INK, fillstyle="none", zorder=5)
    value = f"{point[1]:.1%}" if higher_is_better else f"{point[1]:.4g}"
    low, high = axes.get_xlim()
    place = (point[0] - low) / (high - low)
    side, shift = ("left", -6) if place < 0.25 else ("right", 6) if place > 0.75 else ("center", 0)
    axes.annotate(
        f"best: {value} at {where.format(point[0])}",
        point,
        xytext=(shift, 10 if higher_is_better else -10),
        textcoords="offset points",
        ha=side,
        va="bottom" if higher_is_better else "top",
    )


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the latest `window` values at each place, of fewer at the start; NaN left out."""
    known = np.isfinite(values)
    sums = lambda each: np.convolve(each, np.ones(window))[: len(values)]
    total, count = sums(np.where(known, values, 0.0)), sums(known.astype(float))
    return np.where(count > 0.5, total / np.maximum(count, 1.0), np.nan)
