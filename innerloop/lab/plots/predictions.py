"""A grid of images with what was predicted for each."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from innerloop.lab.plots.style import new_figure, nothing

_COLUMNS, _MOST, _CELL = 6, 36, 1.3


def predicted_images(
    path: str | os.PathLike[str], images: np.ndarray, titles: Sequence[str]
) -> Path:
    """Draw images with a title each; of more than 36, some that are evenly spaced.

    Args:
        path: The PNG file to write. Missing folders are made.
        images: `(images, height, width, 3)`, uint8, or real numbers in [0, 1].
        titles: A short text for each.

    Returns:
        `path`.

    Raises:
        StructureError: If there is no image.
    """
    if not len(images):
        raise nothing("images")
    number = min(len(images), _MOST)
    shown = np.arange(number) * len(images) // number
    columns = min(number, _COLUMNS)
    rows = math.ceil(number / columns)
    with new_figure(path, (columns * _CELL + 0.2, rows * (_CELL + 0.3) + 0.2)) as (figure, done):
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, i in zip(grid.flat, shown.tolist(), strict=False):
            axes.imshow(images[i])
            axes.set_title(titles[i], fontsize=7)
        return done()
