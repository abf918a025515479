"""The metric by number of inner steps."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from innerloop.lab.plots.checks import pair
from innerloop.lab.plots.style import BLUE, INK, metric_axis, new_figure


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

    - `path`: the PNG file to write; missing folders are made
    - `mean` `(K + 1,)`: the metric after 0, 1, …, K inner steps, averaged over tasks
    - `interval` `(K + 1,)`: half the width of its 95% confidence interval, in the metric's units;
      the band is mean ± interval
    - `metric`: the metric's name. One that contains "accuracy" is a fraction, shown in per cent.
    - `trained_steps`: the inner steps of meta-training, drawn as a vertical dotted line

    Returns `path`. Raises `StructureError` where the lengths differ.
    """
    centre, half = pair("mean", mean, "interval", interval)
    with new_figure(path, (6.2, 4.0)) as (figure, done):
        axes = figure.subplots()
        figure.suptitle(title)
        labels = ("mean over tasks", "95% interval")
        adaptation_panel(axes, centre, centre - half, centre + half, metric, labels=labels)
        trained_line(axes, trained_steps)
        axes.legend(loc="best")
        return done()


def adaptation_panel(axes, centre, low, high, metric, *, colour=BLUE, labels=(None, None), **style):
    """Draw the metric by number of inner steps: a line, and a band from `low` to `high`."""
    from matplotlib.ticker import MaxNLocator

    inner = np.arange(len(centre))
    marker = "o" if len(inner) <= 30 else None
    axes.plot(inner, centre, color=colour, marker=marker, markersize=5, label=labels[0], **style)
    axes.fill_between(inner, low, high, color=colour, alpha=0.2, linewidth=0, label=labels[1])
    axes.set(xlabel="inner steps", ylabel=metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    metric_axis(axes.yaxis, metric)


def trained_line(axes, trained_steps: int):
    """Mark the inner steps of meta-training."""
    plural = "step" if trained_steps == 1 else "steps"
    label = f"meta-trained with {trained_steps} {plural}"
    axes.axvline(trained_steps, color=INK, linestyle=":", linewidth=1.4, label=label)
