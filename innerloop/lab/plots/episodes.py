"""Few-shot classification episodes and what was predicted of their queries."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from innerloop.lab.plots.checks import nothing
from innerloop.lab.plots.episode_block import CELL, EDGE, MARGIN, EpisodePanel
from innerloop.lab.plots.style import new_figure


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
        raise nothing("episodes", write)
    if any(len(episode["query_images"]) == 0 for episode in episodes):
        raise nothing("queries in an episode", write)
    blocks = [EpisodePanel(number, episode) for number, episode in enumerate(episodes, start=1)]
    columns = max(block.columns for block in blocks)
    width = MARGIN + columns * CELL + EDGE
    height = EDGE + sum(block.height for block in blocks)
    with new_figure(path, (width, height), layout=None) as (figure, done):
        # one canvas measured in inches from its upper left corner
        canvas = figure.add_axes((0, 0, 1, 1))
        canvas.set_axis_off()
        top = EDGE
        for block in blocks:
            block.draw(canvas, top)
            top += block.height
        canvas.set(xlim=(0, width), ylim=(height, 0))
        return done()
