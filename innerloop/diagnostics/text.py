"""Tables and lists in plain text, 100 characters wide."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from itertools import zip_longest

WIDTH = 100

MANY = 20
"""The number of inner steps above which a table shows some of them."""


def shown_steps(last: int) -> list[int]:
    """The inner steps 0 … `last` that a table shows: all, or 0, 1, 2, 5, 10, 20, … and the last."""
    if last <= MANY:
        return list(range(last + 1))
    series = [lead * 10**power for power in range(len(str(last))) for lead in (1, 2, 5)]
    return [0, *(step for step in series if step < last), last]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: int) -> str:
    """A table with a rule below its headings.

    The first column is wrapped if the table would be too wide. The last column is wrapped at 40
    characters if it is left-aligned.

    Args:
        headings: One for each column; a line break in it starts a second line.
        rows: The cells, in the order of the headings.
        right: The first right-aligned column; these columns are at least six characters wide. The
            columns before it are left-aligned.

    Returns:
        The lines of the table.
    """
    titles = [heading.split("\n") for heading in headings]
    widths = [
        max(6 * (i >= right), *(len(line) for line in [*title, *(row[i] for row in rows)]))
        for i, title in enumerate(titles)
    ]
    if right >= len(headings):
        widths[-1] = min(widths[-1], 40)
    widths[0] = min(widths[0], max(20, WIDTH - sum(widths[1:]) - len(widths) + 1))
    height = max(map(len, titles))
    heads = [[""] * (height - len(title)) + title for title in titles]
    lines = _lines(heads, widths, right)
    lines.append("─" * (sum(widths) + len(widths) - 1))
    wrap = lambda cell, width: textwrap.wrap(cell, width, break_on_hyphens=False)
    for row in rows:
        lines += _lines([wrap(*cell) for cell in zip(row, widths, strict=True)], widths, right)
    return "\n".join(lines)


def plus_minus(means: Iterable[float], halves: Iterable[float]) -> list[str]:
    """`0.8131 ± 0.0152`: means and half their intervals, all with the same number of decimals.

    The largest interval has three digits.
    """
    halves = list(halves)
    largest = max((half for half in halves if 0 < half < math.inf), default=0.01)
    decimals = min(max(2 - math.floor(math.log10(largest)), 0), 9)
    pairs = zip(means, halves, strict=True)
    return [f"{mean:,.{decimals}f} ± {half:,.{decimals}f}" for mean, half in pairs]


def definitions(pairs: Sequence[tuple[str, str]]) -> str:
    """Names, each followed by its indented text."""
    said = [f"{name}: {text}" for name, text in pairs]
    return "\n".join(textwrap.fill(each, WIDTH, subsequent_indent="    ") for each in said)


def _lines(cells: Sequence[Sequence[str]], widths: Sequence[int], right: int) -> list[str]:
    """The lines of a row whose cells may have several lines."""
    align = lambda part, i: part.rjust(widths[i]) if i >= right else part.ljust(widths[i])
    rows = zip_longest(*cells, fillvalue="")
    return [" ".join(map(align, parts, range(len(widths)))).rstrip() for parts in rows]
