"""Tables and lists in plain text, 100 characters wide."""

import textwrap
from collections.abc import Sequence

WIDTH = 100


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: int) -> str:
    """A table with a rule below its headings.

    Args:
        headings: one for each column; a line break in it starts a second line
        rows: cells in the order of the headings
        right: the first column that is set flush right, at least six characters wide; those before
            it are set flush left

    The first column is folded where the table would be too wide.
    """
    titles = [heading.split("\n") for heading in headings]
    widths = [
        max(6 * (i >= right), *(len(line) for line in [*title, *(row[i] for row in rows)]))
        for i, title in enumerate(titles)
    ]
    widths[0] = min(widths[0], max(20, WIDTH - sum(widths[1:]) - len(widths) + 1))
    height = max(map(len, titles))
    heads = [[""] * (height - len(title)) + title for title in titles]
    lines = _lines(heads, widths, right)
    lines.append("─" * (sum(widths) + len(widths) - 1))
    for first, *rest in rows:
        cells = [textwrap.wrap(first, widths[0]) or [""], *([cell] for cell in rest)]
        lines += _lines(cells, widths, right)
    return "\n".join(lines)


def definitions(pairs: Sequence[tuple[str, str]]) -> str:
    """Names, each followed by what is said of it, indented."""
    said = [f"{name}: {text}" for name, text in pairs]
    return "\n".join(textwrap.fill(each, WIDTH, subsequent_indent="    ") for each in said)


def _lines(cells: Sequence[Sequence[str]], widths: Sequence[int], right: int) -> list[str]:
    """The lines of a row whose cells may have several."""
    lines = []
    for n in range(max(map(len, cells))):
        parts = [cell[n] if n < len(cell) else "" for cell in cells]
        aligned = [
            part.rjust(width) if i >= right else part.ljust(width)
            for i, (part, width) in enumerate(zip(parts, widths, strict=True))
        ]
        lines.append(" ".join(aligned).rstrip())
    return lines
