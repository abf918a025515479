"""What a section is made of. Each kind of block has a template of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup

from innerloop.lab.report.runs import Picture, Run


@dataclass(frozen=True)
class Facts:
    """Short values with their names, as tiles: `(name, value, remark)`."""

    entries: Sequence[tuple[str, str, str]]
    template: ClassVar[str] = "facts.html"


@dataclass(frozen=True)
class Pairs:
    """Names and values, as many columns of them as the page is wide."""

    entries: Sequence[tuple[str, str]]
    template: ClassVar[str] = "pairs.html"


@dataclass(frozen=True)
class TextTable:
    """Rows under headings; the first cell of a row names it."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    template: ClassVar[str] = "table.html"


@dataclass(frozen=True)
class Figure:
    """A drawing."""

    title: str
    svg: Markup
    caption: str = ""


@dataclass(frozen=True)
class Figures:
    """Drawings side by side where the page is wide, under the key to the runs' colours."""

    runs: Sequence[Run]
    figures: Sequence[Figure]
    template: ClassVar[str] = "figures.html"


@dataclass(frozen=True)
class Note:
    """A sentence."""

    text: str
    template: ClassVar[str] = "note.html"


@dataclass(frozen=True)
class NotRecorded:
    """What these runs cannot tell."""

    what: str
    runs: Sequence[Run]
    template: ClassVar[str] = "not_recorded.html"


Content = Facts | Pairs | TextTable | Figures | Picture | Note | NotRecorded
