"""The validation metric against wall-clock, and the panel that `learning_curve` draws of it too."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from innerloop.lab.plots.checks import pair
from innerloop.lab.plots.style import INK, ORANGE, is_fraction, metric_axis, new_figure


def validation_over_time(
    path: str | os.PathLike[str],
    *,
    minutes: ArrayLike,
    validation: ArrayLike,
    metric: str,
    title: str,
) -> Path:
    """Draw the validation metric against wall-clock, compilation included.

    - `path`: the PNG file to write; missing folders are made
    - `minutes`, `validation` `(n,)`: when each validation was made, and its metric
    - `metric`: the metric's name. One that contains "accuracy" is a fraction, shown in per cent.

    Returns `path`. Raises `StructureError` where the lengths differ.
    """
    at, scores = pair("minutes", minutes, "validation", validation)
    with new_figure(path, (6.2, 4.0)) as (figure, done):
        axes = figure.subplots()
        figure.suptitle(title)
        validation_panel(axes, at, scores, metric, along="minutes", where="{:.1f} min")
        return done()


def validation_panel(
    axes, at, scores, metric, higher_is_better=None, *, along="outer step", where="step {:,.0f}"
):
    """Draw the metric `along` something, and say at the best point its value and `where` it is."""
    validation_line(axes, at, scores, metric, along=along)
    axes.margins(y=0.2)  # room for the label, on the side where no other point can be
    _mark_best(axes, at, scores, metric, higher_is_better, where)


def validation_line(axes, at, scores, metric, *, along, colour=ORANGE, **style):
    """Draw the metric `along` something."""
    axes.plot(at, scores, color=colour, marker="o", markersize=5, **style)
    axes.set(xlabel=along, ylabel=f"validation {metric}")
    metric_axis(axes.yaxis, metric)


def _mark_best(axes, at, scores, metric, higher_is_better, where):
    if higher_is_better is None:
        higher_is_better = is_fraction(metric)
    usable = np.flatnonzero(np.isfinite(scores))
    if not len(usable):
        return
    best = usable[np.argmax(scores[usable]) if higher_is_better else np.argmin(scores[usable])]
    axes.plot(
        at[best], scores[best], marker="o", markersize=11, color=INK, fillstyle="none", zorder=5
    )
    value = f"{scores[best]:.1%}" if is_fraction(metric) else f"{scores[best]:.4g}"
    low, high = axes.get_xlim()
    place = (at[best] - low) / (high - low)
    side = "left" if place < 0.25 else "right" if place > 0.75 else "center"
    axes.annotate(
        f"best: {value} at {where.format(at[best])}",
        (at[best], scores[best]),
        xytext=({"left": -6, "center": 0, "right": 6}[side], 10 if higher_is_better else -10),
        textcoords="offset points",
        ha=side,
        va="bottom" if higher_is_better else "top",
    )
