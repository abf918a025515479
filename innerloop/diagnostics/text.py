"""Tables and lists in plain text, 100 characters wide."""

import textwrap
from collections.abc import Sequence
from itertools import zip_longest

WIDTH = 100


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


def definitions(pairs: Sequence[tuple[str, str]]) -> str:
    """Names, each followed by its indented text."""
    said = [f"{name}: {text}" for name, text in pairs]
    return "\n".join(textwrap.fill(each, WIDTH, subsequent_indent="    ") for each in said)


def _lines(cells: Sequence[Sequence[str]], widths: Sequence[int], right: int) -> list[str]:
    """The lines of a row whose cells may have several lines."""
    align = lambda part, i: part.rjust(widths[i]) if i >= right else part.ljust(widths[i])
    rows = zip_longest(*cells, fillvalue="")
    return [" ".join(map(align, parts, range(len(widths)))).rstrip() for parts in rows]
