"""Names beside the right ends of lines, moved apart where lines end close together."""

from collections.abc import Sequence

import numpy as np

from innerloop.lab.plots.style import GREY


def label_ends(
    axes,
    ends: Sequence[tuple[float, float]],
    names: Sequence[str],
    colours: Sequence[str],
    room: float = 0.045,
) -> None:
    """Write each name at the right of the axes, with a line to its end, in data coordinates.

    Lines and scales have to be there before. `room` is the least distance of two names, as a share
    of the height of the axes.
    """
    axes.get_xlim(), axes.get_ylim()  # which are worked out when they are asked for
    order = sorted(range(len(ends)), key=lambda i: ends[i][1])
    to_axes = axes.transScale + axes.transLimits
    heights = [float(to_axes.transform(ends[i])[1]) for i in order]
    for i, height in zip(order, apart(heights, room), strict=True):
        axes.annotate(
            names[i],
            ends[i],
            (1.05, height),
            textcoords="axes fraction",
            color=colours[i],
            va="center",
            fontsize=9,
            arrowprops={
                "arrowstyle": "-",
                "color": GREY,
                "linewidth": 0.6,
                "relpos": (0, 0.5),
                "shrinkB": 4,
            },
        )


def apart(places: list[float], room: float) -> list[float]:
    """The places at least `room` apart, moved as little as can be; they come sorted."""
    groups: list[list[float]] = []  # of neighbours that share the room between them
    for i, place in enumerate(places):
        groups.append([place - i * room])
        while len(groups) > 1 and np.mean(groups[-2]) > np.mean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    level = [float(np.mean(group)) for group in groups for _ in group]
    return [place + i * room for i, place in enumerate(level)]
