"""Writes the table of Optax's optimizers into docs/optax.md, from benchmarks/results/optax.json.

Run it as `python docs/optax_table.py`; a test holds the page to the file.
"""

import json
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "optax.md"
TABLE = ROOT / "benchmarks" / "results" / "optax.json"
BEGIN, END = "<!-- table: begin, written by docs/optax_table.py -->", "<!-- table: end -->"


def said(verdicts: dict[str, list[str]], everywhere: int) -> str:
    """What the cells say, the exceptions with their places."""
    parts = []
    for verdict, places in verdicts.items():
        where = "" if len(places) == everywhere else f" ({', '.join(dict.fromkeys(places))})"
        parts.append(verdict + where)
    return "; ".join(parts)


def summary(cells: dict[str, dict[str, str]], name: str) -> str:
    """One cell of the page, from the cells of a row by their place and kind."""
    verdicts: dict[str, list[str]] = defaultdict(list)
    total = 0
    for place, kinds in cells.items():
        for kind, verdict in kinds.items():
            total += 1
            plain = verdict.partition(":")[0].partition(",")[0]
            verdicts[plain].append(name.format(place=place, kind=kind))
    works = verdicts.pop("works", [])
    if not verdicts:
        return "works"
    rest = said(verdicts, total)
    return f"works; {rest}" if works else rest


def table() -> str:
    """One line for each optimizer."""
    found = json.loads(TABLE.read_text())
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    cells = found["cells"]
    of_all = "" if cells["measured"] == cells["of"] else f" of {cells['of']}"
    versions += f": {cells['measured']}{of_all} combinations"
    lines = ["| optimizer | inner loop | `fit` |", "| --- | --- | --- |"]
    for name, cells in found["optimizers"].items():
        inner = summary(cells["inner"], "`{place}`")
        outer = summary({"fit": cells["fit"]}, "{kind}")
        lines.append(f"| `{name}` | {inner} | {outer} |")
    return "\n".join([f"Measured with {versions}.", "", *lines])


def updated(text: str) -> str:
    """The page with the table between its markers."""
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{tail}"


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
