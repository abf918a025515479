"""The look all figures share, and the way each is written to its file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# told apart by colour-blind readers too (after Okabe and Ito, and Tol)
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#CC3311"
INK, GREY = "#222222", "#767676"

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
    "grid.color": "#E6E6E6",
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
def new_figure(
    path: str | os.PathLike[str],
    size: tuple[float, float],
    layout: str | None = "constrained",
) -> Iterator[tuple[Any, Any]]:
    """A figure of `size` inches in the common style, and the function that writes it to `path`."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout=layout)  # pyright: ignore[reportArgumentType]

        def done() -> Path:
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            try:
                figure.savefig(partial, format="png", dpi=150)
                os.replace(partial, target)
            finally:
                partial.unlink(missing_ok=True)
            return target

        yield figure, done


def is_fraction(metric: str) -> bool:
    """Whether the metric is a fraction, shown in per cent."""
    return "accuracy" in metric.lower()


def metric_axis(axes, metric: str):
    """Label the vertical axis in per cent where the metric is a fraction."""
    if is_fraction(metric):
        from matplotlib.ticker import PercentFormatter

        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
