"""Figures as inline SVG, in colours that the page's style sheet decides, light or dark."""

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

_SIZE = (4.6, 2.9)  # inches; 331 points wide, so that a phone shows the text at its own size
_SETTINGS = {
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "legend.fontsize": 9.0,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",  # text stays text: it can be searched, read out and restyled
    "text.parse_math": False,
}


def run_colour(place: int) -> str:
    """The colour of the run at this place, as it is given to matplotlib."""
    return _COLOURS[place % len(_COLOURS)]


def run_dashes(place: int) -> str:
    """Its line: runs beyond the number of colours are told apart by dashes."""
    return _DASHES[place // len(_COLOURS) % len(_DASHES)]


def draw(label: str, panel: Callable[[Any], None]) -> Markup:
    """One set of axes, filled by `panel`, as an SVG element; `label` is for who cannot see it."""
    # The label salts the names of what the figure refers to: no other figure of the page has them,
    # and the same figure is the same text.
    with styled_figure(_SIZE, **_SETTINGS, **{"svg.hashsalt": label}) as figure:
        panel(figure.subplots())
        written = io.StringIO()
        figure.savefig(
            written, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    return _inlined(written.getvalue(), label)


def _inlined(svg: str, label: str) -> Markup:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Names of groups, which every figure of the page has; what is referred to has another form.
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)
    svg = re.sub(r"\s*<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\n\s*", "\n", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour.lower(), f"var({variable})")
    size = re.search(r'viewBox="[^"]*"', svg)
    assert size is not None
    opening = f'<svg role="img" aria-label="{escape(label)}" {size[0]}>'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1))
