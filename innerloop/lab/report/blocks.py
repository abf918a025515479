"""The blocks of a section. Each kind has a template, which is named as the class is."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from innerloop.lab.report.runs import Picture, Run


class Facts(NamedTuple):
    """Short values with their names, as tiles: `(name, value, remark)`."""

    entries: Sequence[tuple[str, str, str]]


class Pairs(NamedTuple):
    """Names and values, in as many columns as the page is wide."""

    entries: Sequence[tuple[str, str]]


class TextTable(NamedTuple):
    """Rows under headings; the first cell of a row names it."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


class Figure(NamedTuple):
    """A drawing, which is part of `Figures`."""

    title: str
    svg: Markup
    caption: str = ""


class Figures(NamedTuple):
    """Drawings side by side where the page is wide, under the key to the colours of the runs."""

    runs: Sequence[Run]
    figures: Sequence[Figure]


class Note(NamedTuple):
    """A sentence."""

    text: str


class Missing(NamedTuple):
    """What some runs did not record."""

    what: str


Content = Facts | Pairs | TextTable | Figures | Picture | Note | Missing
