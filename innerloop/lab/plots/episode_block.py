"""One episode of the figure of episodes: which of its images are drawn, and where."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from innerloop.lab.plots.style import GREEN, GREY, INK, RED

_SUPPORT, _QUERIES, _COLUMNS = 30, 15, 10  # the most images shown of an episode, and per row

# Inches: around the figure, left of the images, the width of a cell and of the image in it, the
# height of a heading, of the caption below a support image and below a query, and between blocks.
EDGE, MARGIN, CELL, _IMAGE = 0.15, 0.95, 0.86, 0.72
_HEADING, _LABEL, _VERDICT, _BETWEEN = 0.36, 0.26, 0.44, 0.22


class EpisodePanel:
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
        canvas.text(EDGE, top, heading, fontsize=12, fontweight="bold", va="top")
        top += _HEADING
        pixels = np.concatenate([self.support.ravel(), self.queries.ravel()])
        scale = (float(pixels.min()), float(pixels.max()))

        canvas.text(EDGE, top + _IMAGE / 2, "support", fontsize=10, color=GREY, va="center")
        if len(self.support_shown) < len(self.support):
            partly = f"{len(self.support_shown)} of {len(self.support)}"
            canvas.text(EDGE, top + _IMAGE + 0.05, partly, fontsize=9, color=GREY, va="top")
        for place, i in enumerate(self.support_shown):
            row, column = divmod(place, self.support_columns)
            x, y = MARGIN + column * CELL, top + row * (_IMAGE + _LABEL)
            _image(canvas, self.support[i], x, y, scale, colour="#BBBBBB", thickness=0.8)
            _caption(canvas, x, y, f"class {self.support_labels[i]}", INK)
        top += self.support_rows * (_IMAGE + _LABEL) + 0.1

        canvas.text(EDGE, top + _IMAGE / 2, "queries", fontsize=10, color=GREY, va="center")
        canvas.text(EDGE, top + _IMAGE + 0.05, "prediction", fontsize=9, color=GREY, va="top")
        for place, i in enumerate(self.queries_shown):
            row, column = divmod(place, self.query_columns)
            x, y = MARGIN + column * CELL, top + row * (_IMAGE + _VERDICT)
            colour, sign = (GREEN, "✓") if right[i] else (RED, "✗")
            _image(canvas, self.queries[i], x, y, scale, colour=colour, thickness=2.6)
            verdict = f"{sign} {self.predictions[i]} ({self.probability[i]:.0%})"
            if not right[i]:
                verdict += f"\ntruth: {self.labels[i]}"
            _caption(canvas, x, y, verdict, INK)


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
