"""The style of all figures, the checks of their data, and how a figure is written to its file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from innerloop.errors import StructureError
from innerloop.storage.files import write_whole

# Colour-blind readers can tell these colours apart (after Okabe and Ito, and Tol).
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#CC3311"
INK, GREY, GRID = "#222222", "#767676", "#E6E6E6"

_STYLE = Path(__file__).with_name("figures.mplstyle")


@contextmanager
def styled_figure(
    size: tuple[float, float], layout: str | None = "constrained", **settings: Any
) -> Iterator[Any]:
    """A figure of `size` inches in the common style; `settings` are further rcParams."""
    import matplotlib
    from matplotlib.figure import Figure

    rc: dict[Any, Any] = settings
    with matplotlib.rc_context(rc, fname=_STYLE):
        yield Figure(figsize=size, layout=layout)  # pyright: ignore[reportArgumentType]


@contextmanager
def new_figure(
    path: str | os.PathLike[str], size: tuple[float, float], layout: str | None = "constrained"
) -> Iterator[tuple[Any, Any]]:
    """A figure in the common style, and the function that writes it to `path` as PNG."""
    with styled_figure(size, layout) as figure:

        def done() -> Path:
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            return write_whole(target, lambda file: figure.savefig(file, format="png", dpi=150))

        yield figure, done


def is_fraction(metric: str) -> bool:
    """Whether the metric is a fraction, which is shown in per cent."""
    return "accuracy" in metric.lower()


def metric_axis(axis, metric: str):
    """Label `axes.xaxis` or `axes.yaxis` in per cent if the metric is a fraction."""
    if is_fraction(metric):
        per_cent(axis)


def per_cent(axis):
    """Label one axis in per cent, with no more digits than its ticks need."""
    axis.set_major_formatter(lambda share, _: f"{round(100 * share, 6):g}%")


def step_axis(axes):
    """Label the horizontal axis with whole numbers, such as 1,000."""
    axes.locator_params(axis="x", nbins=6, steps=[1, 2, 5, 10], integer=True)
    axes.xaxis.set_major_formatter("{x:,.0f}")


def spread_axis(axes, values: np.ndarray):
    """Make the vertical axis logarithmic if the finite values are positive and span a decade."""
    finite = values[np.isfinite(values)]
    if len(finite) and finite.min() > 0 and finite.max() > 10 * finite.min():
        axes.set_yscale("log")
        plain_log_ticks(axes.yaxis, finite.max() / finite.min())


def plain_log_ticks(axis, ratio: float):
    """Label a logarithmic axis, whose ends have this ratio, with plain numbers: 0.5, 1, 2, 5."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 10**2.5 else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def pair(**vectors: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Two named arguments as vectors. Raises `StructureError` if their lengths differ."""
    first_name, second_name = vectors
    a, b = (np.asarray(vector, np.float64) for vector in vectors.values())
    if a.ndim != 1 or a.shape != b.shape:
        raise StructureError(
            f"{first_name} and {second_name} do not fit together",
            got=f"shapes {a.shape} and {b.shape}",
            expected="two vectors of one length",
        )
    return a, b


def nothing(what: str) -> StructureError:
    """The error for a figure that was given no `what`."""
    return StructureError(f"there are no {what} to draw", got="none", expected="at least one")
