"""Figures of a run: NumPy data in, one PNG file out.

Nothing here touches pyplot, a display or matplotlib's global settings, and matplotlib is imported
only when a figure is drawn. Each file is written under a temporary name and then moved into place,
so a reader never meets half a figure.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from innerloop.errors import StructureError

# told apart by colour-blind readers too (after Okabe and Ito, and Tol)
_BLUE, _ORANGE, _GREEN, _RED = "#0072B2", "#E69F00", "#009E73", "#CC3311"
_INK, _GREY = "#222222", "#767676"

_STYLE: dict[Any, Any] = {
    "axes.edgecolor": _GREY,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": _INK,
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
    "text.color": _INK,
    "text.usetex": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
}

_PANELS = 4
_SUPPORT, _QUERIES, _COLUMNS = 30, 15, 10  # the most images shown of an episode, and per row


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
    x, y = _pair("steps", steps, "losses", losses)
    at, scores = _pair("validation_steps", validation_steps, "validation", validation)
    if not len(x):
        raise StructureError(
            "there is no loss to draw",
            got="losses of length 0",
            expected="the loss of at least one outer step",
            write="learning_curve(path, steps=steps, losses=losses, ...)",
        )
    y = np.where(np.isfinite(y), y, np.nan)
    finite = y[np.isfinite(y)]
    window = max(1, len(y) // 50)
    panels = 2 if len(at) else 1
    with _figure(path, (5.2 * panels, 3.9)) as (figure, done):
        axes = figure.subplots(1, panels, sharex=True, squeeze=False)[0]
        figure.suptitle(title)
        if window == 1:
            axes[0].plot(x, y, color=_BLUE, marker="." if len(x) < 30 else None)
        else:
            axes[0].plot(x, y, color=_BLUE, alpha=0.3, linewidth=0.7, label="each step")
            axes[0].plot(
                x, _running_mean(y, window), color=_BLUE, label=f"mean of the last {window}"
            )
            axes[0].legend(loc="upper right")
        if len(finite) and finite.min() > 0 and finite.max() > 10 * finite.min():
            axes[0].set_yscale("log")
        axes[0].set(xlabel="outer step", ylabel="training loss")
        if panels == 2:
            _validation_panel(axes[1], at, scores, metric, higher_is_better)
        _thousands(axes[0])
        return done()


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
    at, scores = _pair("minutes", minutes, "validation", validation)
    with _figure(path, (6.2, 4.0)) as (figure, done):
        axes = figure.subplots()
        figure.suptitle(title)
        _validation_panel(axes, at, scores, metric, along="minutes", where="{:.1f} min")
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

    - `path`: the PNG file to write; missing folders are made
    - `mean` `(K + 1,)`: the metric after 0, 1, …, K inner steps, averaged over tasks
    - `interval` `(K + 1,)`: half the width of its 95% confidence interval, in the metric's units;
      the band is mean ± interval
    - `metric`: the metric's name. One that contains "accuracy" is a fraction, shown in per cent.
    - `trained_steps`: the inner steps of meta-training, drawn as a vertical dotted line

    Returns `path`. Raises `StructureError` where the lengths differ.
    """
    from matplotlib.ticker import MaxNLocator

    centre, half = _pair("mean", mean, "interval", interval)
    inner = np.arange(len(centre))
    with _figure(path, (6.2, 4.0)) as (figure, done):
        axes = figure.subplots()
        figure.suptitle(title)
        marker = "o" if len(inner) <= 30 else None
        axes.plot(inner, centre, color=_BLUE, marker=marker, markersize=5, label="mean over tasks")
        axes.fill_between(
            inner,
            centre - half,
            centre + half,
            color=_BLUE,
            alpha=0.2,
            linewidth=0,
            label="95% interval",
        )
        plural = "step" if trained_steps == 1 else "steps"
        axes.axvline(
            trained_steps,
            color=_INK,
            linestyle=":",
            linewidth=1.4,
            label=f"meta-trained with {trained_steps} {plural}",
        )
        axes.set(xlabel="inner steps", ylabel=metric)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _metric_axis(axes, metric)
        axes.legend(loc="best")
        return done()


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
        raise _nothing("tasks", write)
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
    with _figure(path, size) as (figure, done):
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
                color=_RED,
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


def episodes_with_predictions(
    path: str | os.PathLike[str], episodes: Sequence[Mapping[str, Any]]
) -> Path:
    """Draw few-shot classification episodes: the support set, and what was made of the queries.

    - `path`: the PNG file to write; missing folders are made
    - `episodes`: mappings, two or three for a figure that can be read, a block each:
        - `support_images` `(ways * shots, height, width)`, `support_labels` `(ways * shots,)`
        - `query_images` `(q, height, width)`, `query_labels` `(q,)`
        - `predictions` `(q,)`: the predicted labels
        - `probability` `(q,)`: the probability of each predicted label, from 0 to 1

    Images may have a last axis of 1 or 3 channels; grey ones are drawn from the episode's least
    value (black) to its greatest (white). Of a larger episode, at most 30 support images (equally
    many of each class) and 15 queries (evenly spaced, whatever was predicted) are drawn; the
    accuracy in the heading is that of all queries.

    Returns `path`. Raises `StructureError` where there is no episode, or one without queries.
    """
    write = "episodes_with_predictions(path, episodes)"
    if not episodes:
        raise _nothing("episodes", write)
    if any(len(episode["query_images"]) == 0 for episode in episodes):
        raise _nothing("queries in an episode", write)
    blocks = [_Block(number, episode) for number, episode in enumerate(episodes, start=1)]
    columns = max(block.columns for block in blocks)
    width = _MARGIN + columns * _CELL + _EDGE
    height = _EDGE + sum(block.height for block in blocks)
    with _figure(path, (width, height), layout=None) as (figure, done):
        # one canvas measured in inches from its upper left corner
        canvas = figure.add_axes((0, 0, 1, 1))
        canvas.set_axis_off()
        top = _EDGE
        for block in blocks:
            block.draw(canvas, top)
            top += block.height
        canvas.set(xlim=(0, width), ylim=(height, 0))
        return done()


# Inches: around the figure, left of the images, the width of a cell and of the image in it, the
# height of a heading, of the caption below a support image and below a query, and between blocks.
_EDGE, _MARGIN, _CELL, _IMAGE = 0.15, 0.95, 0.86, 0.72
_HEADING, _LABEL, _VERDICT, _BETWEEN = 0.36, 0.26, 0.44, 0.22


class _Block:
    """One episode of `episodes_with_predictions`: what of it is drawn, and where."""

    def __init__(self, number: int, episode: Mapping[str, Any]):
        self.number = number
        self.support = _drawable(episode["support_images"])
        self.support_labels = np.asarray(episode["support_labels"])
        self.queries = _drawable(episode["query_images"])
        self.labels = np.asarray(episode["query_labels"])
        self.predictions = np.asarray(episode["predictions"])
        self.probability = np.asarray(episode["probability"])
        self.support_shown = _equally_many(self.support_labels, _SUPPORT)
        count = len(self.queries)
        self.queries_shown = np.arange(min(count, _QUERIES)) * count // min(count, _QUERIES)
        shots = max(1, len(self.support_shown) // len(np.unique(self.support_labels)))
        # whole classes in a row where they fit
        self.support_columns = min(
            _COLUMNS // shots * shots if shots <= _COLUMNS else _COLUMNS, len(self.support_shown)
        )
        self.support_rows = math.ceil(len(self.support_shown) / self.support_columns)
        self.query_rows = math.ceil(len(self.queries_shown) / _COLUMNS)
        self.query_columns = math.ceil(len(self.queries_shown) / self.query_rows)
        # the heading needs the width of six
        self.columns = max(self.support_columns, self.query_columns, 6)
        self.height = (
            _HEADING
            + self.support_rows * (_IMAGE + _LABEL)
            + self.query_rows * (_IMAGE + _VERDICT)
            + 0.1
            + _BETWEEN
        )

    def draw(self, canvas, top: float):
        right = self.predictions == self.labels
        heading = f"Episode {self.number}: {right.sum()} of {len(right)} queries right"
        heading += f" ({right.mean():.0%})"
        if len(self.queries_shown) < len(self.queries):
            heading += f"; {len(self.queries_shown)} queries shown"
        canvas.text(_EDGE, top, heading, fontsize=12, fontweight="bold", va="top")
        top += _HEADING
        pixels = np.concatenate([self.support.ravel(), self.queries.ravel()])
        scale = (float(pixels.min()), float(pixels.max()))

        canvas.text(_EDGE, top + _IMAGE / 2, "support", fontsize=10, color=_GREY, va="center")
        if len(self.support_shown) < len(self.support):
            partly = f"{len(self.support_shown)} of {len(self.support)}"
            canvas.text(_EDGE, top + _IMAGE + 0.05, partly, fontsize=9, color=_GREY, va="top")
        for place, i in enumerate(self.support_shown):
            row, column = divmod(place, self.support_columns)
            x, y = _MARGIN + column * _CELL, top + row * (_IMAGE + _LABEL)
            _image(canvas, self.support[i], x, y, scale, colour="#BBBBBB", thickness=0.8)
            _caption(canvas, x, y, f"class {self.support_labels[i]}", _INK)
        top += self.support_rows * (_IMAGE + _LABEL) + 0.1

        canvas.text(_EDGE, top + _IMAGE / 2, "queries", fontsize=10, color=_GREY, va="center")
        canvas.text(_EDGE, top + _IMAGE + 0.05, "prediction", fontsize=9, color=_GREY, va="top")
        for place, i in enumerate(self.queries_shown):
            row, column = divmod(place, self.query_columns)
            x, y = _MARGIN + column * _CELL, top + row * (_IMAGE + _VERDICT)
            colour, sign = (_GREEN, "✓") if right[i] else (_RED, "✗")
            _image(canvas, self.queries[i], x, y, scale, colour=colour, thickness=2.6)
            verdict = f"{sign} {self.predictions[i]} ({self.probability[i]:.0%})"
            if not right[i]:
                verdict += f"\ntruth: {self.labels[i]}"
            _caption(canvas, x, y, verdict, _INK)


def _drawable(images: ArrayLike) -> np.ndarray:
    array = np.asarray(images)
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    return array if array.dtype == np.uint8 else array.astype(np.float32)


def _equally_many(labels: np.ndarray, most: int) -> np.ndarray:
    """Indices, ordered by label, of the first few of each class, `most` in all."""
    classes = np.unique(labels)
    each = max(1, most // len(classes))
    return np.concatenate([np.flatnonzero(labels == label)[:each] for label in classes])[:most]


def _image(canvas, image, x, y, scale, *, colour, thickness):
    from matplotlib.patches import Rectangle

    extent = (x, x + _IMAGE, y + _IMAGE, y)
    canvas.imshow(
        image,
        cmap="gray",
        vmin=scale[0],
        vmax=scale[1],
        extent=extent,
        aspect="auto",
        interpolation="nearest",
    )
    canvas.add_patch(
        Rectangle((x, y), _IMAGE, _IMAGE, fill=False, edgecolor=colour, linewidth=thickness)
    )


def _caption(canvas, x, y, text, colour):
    canvas.text(
        x + _IMAGE / 2,
        y + _IMAGE + 0.05,
        text,
        fontsize=9,
        color=colour,
        ha="center",
        va="top",
        linespacing=1.1,
    )


def _validation_panel(
    axes, at, scores, metric, higher_is_better=None, *, along="outer step", where="step {:,.0f}"
):
    if higher_is_better is None:
        higher_is_better = _is_fraction(metric)
    axes.plot(at, scores, color=_ORANGE, marker="o", markersize=5)
    axes.set(xlabel=along, ylabel=f"validation {metric}")
    axes.margins(y=0.2)  # room for the label, on the side where no other point can be
    _metric_axis(axes, metric)
    usable = np.flatnonzero(np.isfinite(scores))
    if not len(usable):
        return
    best = usable[np.argmax(scores[usable]) if higher_is_better else np.argmin(scores[usable])]
    axes.plot(
        at[best], scores[best], marker="o", markersize=11, color=_INK, fillstyle="none", zorder=5
    )
    value = f"{scores[best]:.1%}" if _is_fraction(metric) else f"{scores[best]:.4g}"
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


def _is_fraction(metric: str) -> bool:
    return "accuracy" in metric.lower()


def _metric_axis(axes, metric: str):
    if _is_fraction(metric):
        from matplotlib.ticker import PercentFormatter

        axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _thousands(axes):
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the latest `window` values at each place, of fewer at the start; NaN left out."""
    known = np.isfinite(values)
    ones = np.ones(window)
    total = np.convolve(np.where(known, values, 0.0), ones)[: len(values)]
    count = np.convolve(known.astype(float), ones)[: len(values)]
    return np.where(count > 0.5, total / np.maximum(count, 1.0), np.nan)


def _after(step: int) -> str:
    return "before" if step == 0 else f"{step} step" if step == 1 else f"{step} steps"


def _pair(
    first_name: str, first: ArrayLike, second_name: str, second: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise StructureError(
            f"{first_name} and {second_name} do not fit together",
            got=f"shapes {a.shape} and {b.shape}",
            expected="two vectors of one length",
            write=f"{second_name}={second_name}[:len({first_name})]",
        )
    return a, b


def _nothing(what: str, write: str) -> StructureError:
    return StructureError(
        f"there are no {what} to draw", got="none", expected="at least one", write=write
    )


@contextmanager
def _figure(
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
