"""One-dimensional regression tasks and the fits after a few inner steps."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from innerloop.errors import StructureError
from innerloop.lab.plots.checks import nothing
from innerloop.lab.plots.style import RED, new_figure

_PANELS = 4


def sinusoid_fits(
    path: str | os.PathLike[str],
    tasks: Sequence[Mapping[str, Any]],
    steps: Sequence[int] = (0, 1, 5, 10),
) -> Path:
    """Draw one-dimensional regression tasks: the truth, the support points and the fits.

    - `path`: the PNG file to write; missing folders are made
    - `tasks`: mappings, of which the first four are drawn, a panel each:
        - `x`, `truth` `(n,)`: inputs, and the true function there
        - `support_x`, `support_y` `(k,)`: the points adapted to
        - `fits`: from a number of inner steps to the predictions `(n,)` at `x` after them
    - `steps`: the numbers of inner steps to draw, each a key of every `fits`

    Returns `path`. Raises `StructureError` where there is no task, or a fit is missing.
    """
    import matplotlib

    write = "sinusoid_fits(path, tasks, steps=(0, 1, 5, 10))"
    if not tasks:
        raise nothing("tasks", write)
    shown = tasks[:_PANELS]
    for task in shown:
        missing = [step for step in steps if step not in task["fits"]]
        if missing:
            raise StructureError(
                "a task lacks fits",
                got=f"fits after {sorted(task['fits'])} inner steps",
                expected=f"also after {missing}",
                write=f"sinusoid_fits(path, tasks, steps={tuple(sorted(task['fits']))})",
            )
    rows, columns = (2, 2) if len(shown) == 4 else (1, len(shown))
    colours = matplotlib.colormaps["viridis_r"](np.linspace(0.12, 0.95, len(steps)))
    size = (max(4.2 * columns, 6.4), 2.9 * rows + 0.7)
    with new_figure(path, size) as (figure, done):
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, task in zip(grid.flat, shown, strict=True):
            order = np.argsort(np.asarray(task["x"]))
            x = np.asarray(task["x"])[order]
            truth = np.asarray(task["truth"])[order]
            axes.plot(x, truth, color="#C4C4C4", linewidth=5, label="truth")
            for step, colour in zip(steps, colours, strict=True):
                fit = np.asarray(task["fits"][step])[order]
                axes.plot(x, fit, color=colour, linewidth=1.7, label=_after(step))
            axes.plot(
                np.asarray(task["support_x"]),
                np.asarray(task["support_y"]),
                linestyle="none",
                marker="o",
                markersize=7,
                color=RED,
                markeredgecolor="white",
                zorder=5,
                label="support",
            )
            axes.label_outer()
        for axes in grid[-1]:
            axes.set_xlabel("x")
        for axes in grid[:, 0]:
            axes.set_ylabel("y")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        entries = {"truth": 0, "support": 1}
        order = sorted(range(len(labels)), key=lambda i: entries.get(labels[i], 2))
        figure.legend(
            [handles[i] for i in order],
            [labels[i] for i in order],
            loc="outside upper center",
            ncols=len(order) if columns > 1 else 3,
            columnspacing=1.4,
            handlelength=1.8,
        )
        return done()


def _after(step: int) -> str:
    return "before" if step == 0 else f"{step} step" if step == 1 else f"{step} steps"
