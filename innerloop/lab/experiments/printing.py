"""Results as tables in the terminal."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

MANY = 20
"""Inner steps beyond which a table shows some of them."""


def shown_steps(last: int) -> list[int]:
    """The inner steps 0 … `last` that a table shows: all, or 0, 1, 2, 5, 10, 20, … and the last."""
    if last <= MANY:
        return list(range(last + 1))
    tens = 10 ** len(str(last))
    series = [lead * 10**power for power in range(len(str(tens))) for lead in (1, 2, 5)]
    return [0, *(step for step in series if step < last), last]


def overall(metrics: Iterable[str]) -> list[str]:
    """The metrics of all test tasks; the names of those of a single test set have a slash."""
    return [name for name in metrics if "/" not in name]


def print_test(test: dict[str, Any], normalisation: str) -> None:
    """Every metric after each inner step: mean and interval."""
    print(f"{test['tasks']} test tasks, mean ± 95% interval; normalisation: {normalisation}")
    calibration, names = ["calibration error"] * ("ece" in test), overall(test["mean"])
    rows = []
    for step in shown_steps(len(test["mean"]["loss"]) - 1):
        cells = [
            f"{test['mean'][name][step]:.4f} ± {test['interval_95'][name][step]:.4f}"
            for name in names
        ]
        rows.append([str(step), *cells, *(f"{test['ece'][step]:.4f}" for _ in calibration)])
    _print(["inner steps", *names, *calibration], rows)


def print_trials(record: dict[str, Any]) -> None:
    """A learned optimizer against tuned ones, as `optimizer_record` has them."""
    settings = record["settings"]
    print(
        f"{settings['tasks']} tasks of each family, {settings['steps']} steps; medians over tasks. "
        "Area: mean loss over the run. A tuned rate is the best for the last loss."
    )
    _print(
        ["family", "optimizer", "last loss", "area", "rate"],
        [
            [family, *row]
            for family, found in record["families"].items()
            for row in trial_rows(found, _median)
        ],
    )


def median_and_quartiles(quartiles: Sequence[Any]) -> str:
    """`0.31 (0.28 to 0.35)`. What is not finite is a word in JSON."""
    low, middle, high = (f"{float(value):.3g}" for value in quartiles)
    return f"{middle} ({low} to {high})"


def trial_rows(
    found: dict[str, dict[str, Any]], shown: Callable[[Sequence[Any]], str]
) -> list[list[str]]:
    """Optimizer, last loss, area and rate, of the trials of one family.

    `shown` makes words of three quartiles.
    """
    rates = lambda each: f"{each['rates'][0]:.2g}" if "rates" in each else ""
    edge = lambda each: " (at the edge)" * each.get("at_the_edge", False)
    return [
        [name, shown(each["final"]), shown(each["area"]), rates(each) + edge(each)]
        for name, each in found.items()
    ]


def _median(quartiles: Sequence[Any]) -> str:
    return f"{float(quartiles[1]):.3g}"


def _print(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    words = [heading in ("family", "optimizer") for heading in headings]
    for heading, word in zip(headings, words, strict=True):
        table.add_column(heading, justify="left" if word else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
