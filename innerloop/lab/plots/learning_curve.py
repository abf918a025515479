"""The training loss and the validation metric over outer steps."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from innerloop.errors import StructureError
from innerloop.lab.plots.checks import pair
from innerloop.lab.plots.style import BLUE, new_figure, spread_axis, step_axis
from innerloop.lab.plots.validation_over_time import validation_panel


def learning_curve(
    path: str | os.PathLike[str],
    *,
    steps: ArrayLike,
    losses: ArrayLike,
    validation_steps: ArrayLike,
    validation: ArrayLike,
    metric: str,
    title: str,
    higher_is_better: bool | None = None,
) -> Path:
    """Draw the training loss and the validation metric over outer steps, side by side.

    - `path`: the PNG file to write; missing folders are made
    - `steps`, `losses` `(n,)`: outer steps, and the training loss at each. Drawn raw and as the
      mean of the latest fiftieth of the points; on a logarithmic axis where all losses are
      positive and span more than a decade. What is not finite is left out.
    - `validation_steps`, `validation` `(m,)`: outer steps, and the metric at each; the best point
      is marked. Without points (`m = 0`) there is no second panel.
    - `metric`: the metric's name. One that contains "accuracy" is a fraction, shown in per cent.
    - `higher_is_better`: which end is best; by default, high for accuracy and low for all else

    Returns `path`. Raises `StructureError` where there is no loss or the lengths differ.
    """
    x, y = pair("steps", steps, "losses", losses)
    at, scores = pair("validation_steps", validation_steps, "validation", validation)
    if not len(x):
        raise StructureError(
            "there is no loss to draw",
            got="losses of length 0",
            expected="the loss of at least one outer step",
            write="learning_curve(path, steps=steps, losses=losses, ...)",
        )
    y = np.where(np.isfinite(y), y, np.nan)
    window = max(1, len(y) // 50)
    panels = 2 if len(at) else 1
    with new_figure(path, (5.2 * panels, 3.9)) as (figure, done):
        axes = figure.subplots(1, panels, sharex=True, squeeze=False)[0]
        figure.suptitle(title)
        if window == 1:
            axes[0].plot(x, y, color=BLUE, marker="." if len(x) < 30 else None)
        else:
            axes[0].plot(x, y, color=BLUE, alpha=0.3, linewidth=0.7, label="each step")
            axes[0].plot(
                x, _running_mean(y, window), color=BLUE, label=f"mean of the last {window}"
            )
            axes[0].legend(loc="upper right")
        spread_axis(axes[0], y)
        axes[0].set(xlabel="outer step", ylabel="training loss")
        if panels == 2:
            validation_panel(axes[1], at, scores, metric, higher_is_better)
        step_axis(axes[0])
        return done()


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the latest `window` values at each place, of fewer at the start; NaN left out."""
    known = np.isfinite(values)
    ones = np.ones(window)
    total = np.convolve(np.where(known, values, 0.0), ones)[: len(values)]
    count = np.convolve(known.astype(float), ones)[: len(values)]
    return np.where(count > 0.5, total / np.maximum(count, 1.0), np.nan)
