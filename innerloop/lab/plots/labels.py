"""Names beside the points of a scatter plot, moved until none lies on another."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from innerloop.lab.plots.style import GREY

_GAP = 7  # points (1/72 inch) from a marker to the text beside it
_PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
_ROUNDS = 4  # in each, every label looks for a better place given the others


class _Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: "_Box") -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.bottom < other.top
            and other.bottom < self.top
        )

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        return min(max(x, self.left), self.right), min(max(y, self.bottom), self.top)


class _Place(NamedTuple):
    """Where a label lies, and the line from it to its point."""

    box: _Box
    line: tuple[float, float, float, float]

    @property
    def distance(self) -> float:
        return math.dist(self.line[:2], self.line[2:])


def label_points(
    axes, points: Sequence[tuple[float, float]], names: Sequence[str], colours: Sequence[str]
) -> None:
    """Write each name as near to its point, in data coordinates, as others leave room for.

    Limits and scales of the axes have to be set before. A name that is not next to its point gets a
    line to it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = axes.figure
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()  # so that the layout is known
    unit = figure.dpi / 72
    pixels = [tuple(axes.transData.transform(point).tolist()) for point in points]
    texts = [
        axes.text(*point, name, fontsize=9, color=colour, in_layout=False, zorder=4, bbox=_PAPER)
        for point, name, colour in zip(points, names, colours, strict=True)
    ]
    extents = [text.get_window_extent() for text in texts]
    sizes = [(float(extent.width), float(extent.height)) for extent in extents]
    frame = _Box(*axes.bbox.extents.tolist())
    places = _arrange(pixels, sizes, frame, unit)
    back = axes.transData.inverted()
    for text, place, pixel in zip(texts, places, pixels, strict=True):
        text.set(position=back.transform(place.box[:2]), ha="left", va="bottom")
        if place.distance > 1.2 * _GAP * unit:
            ends = back.transform([pixel, place.line[2:]])
            axes.plot(*ends.T, color=GREY, linewidth=0.7, zorder=3, in_layout=False)


def _arrange(pixels, sizes, frame: _Box, unit: float) -> list[_Place]:
    radius = 4.5 * unit
    markers = [_Box(x - radius, y - radius, x + radius, y + radius) for x, y in pixels]
    options = [_options(pixel, size, unit) for pixel, size in zip(pixels, sizes, strict=True)]
    places = [nearest[0] for nearest in options]
    for _ in range(_ROUNDS):
        before = list(places)
        for i in range(len(places)):
            others = places[:i] + places[i + 1 :]
            obstacles = markers[:i] + markers[i + 1 :]
            places[i] = _cheapest(options[i], others, obstacles, frame, unit)
        if places == before:
            break
    return places


def _cheapest(options, others, markers, frame: _Box, unit: float) -> _Place:
    """The place of least cost; options come by distance, which no cost is less than."""
    best, least = options[0], math.inf
    for option in options:
        if option.distance / unit >= least:
            break
        cost = _cost(option, others, markers, frame, unit)
        if cost < least:
            best, least = option, cost
    return best


def _options(pixel, size, unit: float) -> list[_Place]:
    """Places to the right, to the left, above and below, by their distance."""
    (x, y), (width, height) = pixel, size
    gap, line = _GAP * unit, 1.15 * height
    options = []
    for row in range(-12, 13):
        bottom = y - height / 2 + row * line
        near = abs(row) > 1  # the point is then outside of the text's own rows
        for shift in (0, 1.5, 3, 6, 10):
            away = (0 if near else gap) + shift * line
            for left in (x + away, x - away - width):
                options.append(_place(left, bottom, width, height, x, y))
        if row:
            bottom += math.copysign(gap / 2, row)
            options.append(_place(x - width / 2, bottom, width, height, x, y))
    return sorted(options, key=lambda option: option.distance)


def _place(left, bottom, width, height, x, y) -> _Place:
    box = _Box(left, bottom, left + width, bottom + height)
    return _Place(box, (x, y, *box.nearest(x, y)))


def _cost(option: _Place, others: list[_Place], markers: list[_Box], frame: _Box, unit) -> float:
    """The length of the line, and much more for what lies on something else."""
    box = option.box
    cost = option.distance / unit
    outside = max(frame.left - box.left, box.right - frame.right, 0)
    outside += max(frame.bottom - box.bottom, box.top - frame.top, 0)
    cost += 1000 * (outside > 0) + 10 * outside / unit
    cost += 400 * sum(box.overlaps(marker) for marker in markers)
    cost += 60 * sum(_crosses(option.line, marker) for marker in markers)
    # a name that lies nearer to another point would be read as that one's
    cost += 30 * sum(_distance(box, marker) < option.distance for marker in markers)
    for other in others:
        cost += 400 * box.overlaps(other.box)
        cost += 150 * (_crosses(option.line, other.box) + _crosses(other.line, box))
        cost += 80 * _lines_cross(option.line, other.line)
    return cost


def _distance(box: _Box, marker: _Box) -> float:
    x, y = (marker.left + marker.right) / 2, (marker.bottom + marker.top) / 2
    return math.dist((x, y), box.nearest(x, y))


def _crosses(line, box: _Box) -> bool:
    """Whether a line runs through a box: it crosses a diagonal, or ends within."""
    if not box.overlaps(_Box(*map(min, line[:2], line[2:]), *map(max, line[:2], line[2:]))):
        return False
    if box.left < line[2] < box.right and box.bottom < line[3] < box.top:
        return True
    falling = (box.left, box.top, box.right, box.bottom)
    return _lines_cross(line, box) or _lines_cross(line, falling)


def _lines_cross(first, second) -> bool:
    def side(line, x, y):
        return (line[2] - line[0]) * (y - line[1]) - (line[3] - line[1]) * (x - line[0])

    apart = lambda line, other: side(line, *other[:2]) * side(line, *other[2:]) < 0
    return apart(first, second) and apart(second, first)
