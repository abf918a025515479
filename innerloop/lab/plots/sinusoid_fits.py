"""One-dimensional regression tasks, and the fits after a few inner steps."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from innerloop.errors import StructureError
from innerloop.lab.plots.style import RED, new_figure, nothing

_PANELS = 4
_SUPPORT = {"linestyle": "none", "marker": "o", "markersize": 7, "markeredgecolor": "white"}


def sinusoid_fits(
    path: str | os.PathLike[str],
    tasks: Sequence[Mapping[str, Any]],
    steps: Sequence[int] = (0, 1, 5, 10),
) -> Path:
    """Draw one-dimensional regression tasks: the truth, the support points and the fits.

    Args:
        path: The PNG file to write. Missing folders are made.
        tasks: Mappings, of which the first four are drawn, with one panel each: the inputs `x` and
            the true function there `truth`, both `(n,)`; the support points `support_x` and
            `support_y`, both `(k,)`; and `fits`, from a number of inner steps to the predictions
            `(n,)` at `x` after them.
        steps: The numbers of inner steps to draw, each a key of every `fits`.

    Returns:
        `path`.

    Raises:
        StructureError: If there is no task, or a fit is missing.
    """
    import matplotlib

    if not tasks:
        raise nothing("tasks")
    shown = tasks[:_PANELS]
    for task in shown:
        missing = [step for step in steps if step not in task["fits"]]
        if missing:
            raise StructureError(
                "a task lacks fits",
                got=f"fits after {sorted(task['fits'])} inner steps",
                expected=f"also after {missing}",
            )
    rows, columns = (2, 2) if len(shown) == 4 else (1, len(shown))
    colours = matplotlib.colormaps["viridis_r"](np.linspace(0.12, 0.95, len(steps)))
    size = (max(4.2 * columns, 6.4), 2.9 * rows + 0.7)
    with new_figure(path, size) as (figure, done):
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, task in zip(grid.flat, shown, strict=True):
            order = np.argsort(np.asarray(task["x"]))
            ordered = lambda values, order=order: np.asarray(values)[order]
            x = ordered(task["x"])
            axes.plot(x, ordered(task["truth"]), color="#C4C4C4", linewidth=5, label="truth")
            support = (np.asarray(task[name]) for name in ("support_x", "support_y"))
            axes.plot(*support, color=RED, zorder=5, label="support", **_SUPPORT)
            for step, colour in zip(steps, colours, strict=True):
                label = f"{step} step{'s' * (step != 1)}" if step else "before"
                axes.plot(x, ordered(task["fits"][step]), color=colour, lw=1.7, label=label)
            axes.set(xlabel="x", ylabel="y")
            axes.label_outer()
        figure.legend(
            *grid[0, 0].get_legend_handles_labels(),
            loc="outside upper center",
            ncols=len(steps) + 2 if columns > 1 else 3,
            columnspacing=1.4,
            handlelength=1.8,
        )
        return done()
