"""The metric by number of inner steps."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from innerloop.plots.checks import pair
from innerloop.plots.style import BLUE, INK, metric_axis, new_figure


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
    from matplotlib.ticker import MaxNLocator

    centre, half = pair("mean", mean, "interval", interval)
    inner = np.arange(len(centre))
    with new_figure(path, (6.2, 4.0)) as (figure, done):
        axes = figure.subplots()
        figure.suptitle(title)
        marker = "o" if len(inner) <= 30 else None
        axes.plot(inner, centre, color=BLUE, marker=marker, markersize=5, label="mean over tasks")
        axes.fill_between(
            inner,
            centre - half,
            centre + half,
            color=BLUE,
            alpha=0.2,
            linewidth=0,
            label="95% interval",
        )
        plural = "step" if trained_steps == 1 else "steps"
        axes.axvline(
            trained_steps,
            color=INK,
            linestyle=":",
            linewidth=1.4,
            label=f"meta-trained with {trained_steps} {plural}",
        )
        axes.set(xlabel="inner steps", ylabel=metric)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        metric_axis(axes, metric)
        axes.legend(loc="best")
        return done()
