"""The look all figures share, and the way each is written to its file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from innerloop.storage.files import write_whole

# told apart by colour-blind readers too (after Okabe and Ito, and Tol)
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#CC3311"
INK, GREY, GRID = "#222222", "#767676", "#E6E6E6"

_STYLE: dict[Any, Any] = {
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": INK,
    "axes.labelsize": 11,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.titlesize": 13,
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.color": INK,
    "text.usetex": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def styled_figure(
    size: tuple[float, float], layout: str | None = "constrained", **settings: Any
) -> Iterator[Any]:
    """A figure of `size` inches in the common style; `settings` are matplotlib's own, besides."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = _STYLE | settings
    with matplotlib.rc_context(style):
        yield Figure(figsize=size, layout=layout)  # pyright: ignore[reportArgumentType]


@contextmanager
def new_figure(
    path: str | os.PathLike[str],
    size: tuple[float, float],
    layout: str | None = "constrained",
) -> Iterator[tuple[Any, Any]]:
    """A figure in the common style, and the function that writes it to `path` as PNG."""
    with styled_figure(size, layout) as figure:

        def done() -> Path:
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            save = lambda temporary: figure.savefig(temporary, format="png", dpi=150)
            return write_whole(target, save)

        yield figure, done


def is_fraction(metric: str) -> bool:
    """Whether the metric is a fraction, shown in per cent."""
    return "accuracy" in metric.lower()


def metric_axis(axis, metric: str):
    """Label one axis, `axes.xaxis` or `axes.yaxis`, in per cent where the metric is a fraction."""
    if is_fraction(metric):
        per_cent(axis)


def per_cent(axis):
    """Label one axis in per cent, with no more digits than its ticks need."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 6):g}%"))


def step_axis(axes):
    """Label the horizontal axis with whole numbers, 1,000 as such."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def spread_axis(axes, values: np.ndarray):
    """A logarithmic vertical axis where all finite values are positive and span over a decade."""
    finite = values[np.isfinite(values)]
    if len(finite) and finite.min() > 0 and finite.max() > 10 * finite.min():
        axes.set_yscale("log")
        plain_log_ticks(axes.yaxis, finite.max() / finite.min())


def plain_log_ticks(axis, ratio: float):
    """Label a logarithmic axis, whose ends have this ratio, with plain numbers: 0.5, 1, 2, 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 10**2.5 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
