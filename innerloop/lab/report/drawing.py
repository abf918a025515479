"""Figures as inline SVG, whose colours the page's style sheet chooses, light or dark."""

import io
import re
from collections.abc import Callable
from typing import Any

from markupsafe import Markup, escape

from innerloop.lab.plots.style import BLUE, GREEN, GREY, GRID, INK, ORANGE, RED, styled_figure

_COLOURS = (BLUE, ORANGE, GREEN, RED, "#882E72", "#7A5C3E")
_DASHES = ("solid", "dashed", "dotted")

_VARIABLES = {INK: "--ink", GREY: "--muted", GRID: "--line"}
_VARIABLES |= {colour: f"--run-{i}" for i, colour in enumerate(_COLOURS)}

_SIZE = (4.6, 2.9)  # Inches: 331 points wide, so that a phone shows the text at its own size.
_SETTINGS = {
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "legend.fontsize": 9.0,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",  # Text stays text: it can be searched, read out and restyled.
    "text.parse_math": False,
}


def run_colour(place: int) -> str:
    """The colour of the run at this place, for matplotlib."""
    return _COLOURS[place % len(_COLOURS)]


def run_dashes(place: int) -> str:
    """The line style of the run at this place: runs of one colour have different dashes."""
    return _DASHES[place // len(_COLOURS) % len(_DASHES)]


def draw(label: str, panel: Callable[[Any], None]) -> Markup:
    """One set of axes, filled by `panel`, as an SVG element; screen readers read the `label`."""
    # The label salts the ids that the figure refers to: no other figure of the page has them, and
    # the same figure is the same text.
    with styled_figure(_SIZE, **_SETTINGS, **{"svg.hashsalt": label}) as figure:
        panel(figure.subplots())
        written = io.StringIO()
        nameless = {"Date": None, "Creator": None}
        figure.savefig(written, format="svg", transparent=True, metadata=nameless)
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    # Besides metadata and comments, the ids of groups go: every figure has the same ones, and
    # nothing refers to them.
    svg = re.sub(r"<metadata>.*?</metadata>|\s*<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour.lower(), f"var({variable})")
    size = re.search(r'viewBox="[^"]*"', svg)
    assert size is not None
    opening = f'<svg role="img" aria-label="{escape(label)}" {size[0]}>'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1))
