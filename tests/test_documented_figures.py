"""Tables of the documentation say what was measured, to the digits that they give."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BY_WINDOW = json.loads((ROOT / "benchmarks/results/long-horizon.json").read_text())["by_window"]
COLUMNS = ("TruncatedUnroll", "TruncatedES", "NoiseReuseES", "PersistentES")


def table_rows(page, header):
    """The cells of the table that begins with this line."""
    lines = (ROOT / "docs" / page).read_text().split(header)[1].splitlines()[1:]
    table = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def assert_says(text, value):
    decimals = len(text.partition(".")[2])
    assert float(text.replace("−", "-")) == pytest.approx(value, abs=0.5001 * 10**-decimals)


def test_the_estimates_by_window():
    (header,) = re.findall(r"\| window .*\n", (ROOT / "docs" / "long-horizons.md").read_text())
    rows = table_rows("long-horizons.md", header)
    assert [int(row[0]) for row in rows] == BY_WINDOW["windows"]
    for i, row in enumerate(rows):
        for column, cell in zip(COLUMNS, row[1:], strict=True):
            measured = BY_WINDOW[column][i]
            mean, *interval = re.findall(r"[−\d.]+", cell)
            assert_says(mean, measured["mean"])
            for text in interval:
                assert_says(text, 1.96 * measured["standard_error"])
