"""Few-shot classification episodes and the predictions of their queries."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from innerloop.lab.plots.style import GREEN, GREY, INK, RED, new_figure, nothing

# The most images shown of an episode, and per row.
_SUPPORT, _QUERIES, _COLUMNS = 30, 15, 10

# Inches: around the figure, left of the images, the width of a cell and of the image in it, the
# height of a heading, of the caption below a support image and below a query, and between blocks.
_EDGE, _MARGIN, _CELL, _IMAGE = 0.15, 0.95, 0.86, 0.72
_HEADING, _LABEL, _VERDICT, _BETWEEN = 0.36, 0.26, 0.44, 0.22


def episodes_with_predictions(
    path: str | os.PathLike[str], episodes: Sequence[Mapping[str, Any]]
) -> Path:
    """Draw few-shot classification episodes: the support sets, and the predictions of the queries.

    Images may have a last axis of 1 or 3 channels. Grey ones are drawn from the episode's least
    value (black) to its greatest (white). Of a larger episode, at most 30 support images (equally
    many of each class) and 15 queries (evenly spaced, whatever was predicted) are drawn; the
    accuracy in the heading is that of all queries.

    Args:
        path: The PNG file to write. Missing folders are made.
        episodes: Mappings, two or three for a figure that can be read, each with
            `support_images` `(ways * shots, height, width)`, `support_labels` `(ways * shots,)`,
            `query_images` `(q, height, width)`, `query_labels` `(q,)`, the predicted labels
            `predictions` `(q,)`, and the probability of each of them `probability` `(q,)`.

    Returns:
        `path`.

    Raises:
        StructureError: If there is no episode, or one has no queries.
    """
    if not episodes:
        raise nothing("episodes")
    if any(len(episode["query_images"]) == 0 for episode in episodes):
        raise nothing("queries in an episode")
    panels = [EpisodePanel(number, episode) for number, episode in enumerate(episodes, start=1)]
    width = _MARGIN + max(panel.columns for panel in panels) * _CELL + _EDGE
    height = _EDGE + sum(panel.height for panel in panels)
    with new_figure(path, (width, height), layout=None) as (figure, done):
        # One canvas, measured in inches from its upper left corner.
        canvas = figure.add_axes((0, 0, 1, 1))
        canvas.set_axis_off()
        top = _EDGE
        for panel in panels:
            panel.draw(canvas, top)
            top += panel.height
        canvas.set(xlim=(0, width), ylim=(height, 0))
        return done()


class EpisodePanel:
    """One episode of the figure: which of its images are drawn, and where."""

    def __init__(self, number: int, episode: Mapping[str, Any]):
        self.number = number
        self.support = _drawable(episode["support_images"])
        self.support_labels = np.asarray(episode["support_labels"])
        self.queries = _drawable(episode["query_images"])
        self.labels = np.asarray(episode["query_labels"])
        self.predictions = np.asarray(episode["predictions"])
        self.probability = np.asarray(episode["probability"])
        self.support_shown = _equally_many(self.support_labels, _SUPPORT)
        shown = min(len(self.queries), _QUERIES)
        self.queries_shown = np.arange(shown) * len(self.queries) // shown
        shots = max(1, len(self.support_shown) // len(np.unique(self.support_labels)))
        # Whole classes in a row where they fit.
        in_a_row = _COLUMNS // shots * shots if shots <= _COLUMNS else _COLUMNS
        self.support_columns = min(in_a_row, len(self.support_shown))
        support_rows = math.ceil(len(self.support_shown) / self.support_columns)
        query_rows = math.ceil(shown / _COLUMNS)
        self.query_columns = math.ceil(shown / query_rows)
        # The heading needs the width of six.
        self.columns = max(self.support_columns, self.query_columns, 6)
        self.support_height = support_rows * (_IMAGE + _LABEL) + 0.1
        self.height = _HEADING + self.support_height + query_rows * (_IMAGE + _VERDICT) + _BETWEEN

    def draw(self, canvas, top: float):
        """Draw the episode, whose upper edge is at `top`."""
        right = self.predictions == self.labels
        heading = f"Episode {self.number}: {right.sum()} of {len(right)} queries right"
        heading += f" ({right.mean():.0%})"
        if len(self.queries_shown) < len(self.queries):
            heading += f"; {len(self.queries_shown)} queries shown"
        canvas.text(_EDGE, top, heading, fontsize=12, fontweight="bold", va="top")
        top += _HEADING
        pixels = np.concatenate([self.support.ravel(), self.queries.ravel()])
        scale = {"vmin": float(pixels.min()), "vmax": float(pixels.max())}

        partly = len(self.support_shown) < len(self.support)
        of_all = f"{len(self.support_shown)} of {len(self.support)}"
        _row_label(canvas, top, "support", of_all if partly else "")
        for place, i in enumerate(self.support_shown):
            row, column = divmod(place, self.support_columns)
            corner = _MARGIN + column * _CELL, top + row * (_IMAGE + _LABEL)
            frame = {"edgecolor": "#BBBBBB", "linewidth": 0.8}
            _cell(canvas, *corner, self.support[i], f"class {self.support_labels[i]}", scale, frame)
        top += self.support_height

        _row_label(canvas, top, "queries", "prediction")
        for place, i in enumerate(self.queries_shown):
            row, column = divmod(place, self.query_columns)
            corner = _MARGIN + column * _CELL, top + row * (_IMAGE + _VERDICT)
            colour, sign = (GREEN, "✓") if right[i] else (RED, "✗")
            verdict = f"{sign} {self.predictions[i]} ({self.probability[i]:.0%})"
            if not right[i]:
                verdict += f"\ntruth: {self.labels[i]}"
            frame = {"edgecolor": colour, "linewidth": 2.6}
            _cell(canvas, *corner, self.queries[i], verdict, scale, frame)


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


def _row_label(canvas, top, text, below):
    style = {"color": GREY, "fontsize": 9}
    canvas.text(_EDGE, top + _IMAGE / 2, text, va="center", **(style | {"fontsize": 10}))
    canvas.text(_EDGE, top + _IMAGE + 0.05, below, va="top", **style)


def _cell(canvas, x, y, image, caption, scale, frame):
    from matplotlib.patches import Rectangle

    place = {"extent": (x, x + _IMAGE, y + _IMAGE, y), "aspect": "auto"}
    canvas.imshow(image, cmap="gray", interpolation="nearest", **place, **scale)
    canvas.add_patch(Rectangle((x, y), _IMAGE, _IMAGE, fill=False, **frame))
    style = {"fontsize": 9, "color": INK, "ha": "center", "va": "top", "linespacing": 1.1}
    canvas.text(x + _IMAGE / 2, y + _IMAGE + 0.05, caption, **style)
