"""Results as tables in the terminal."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from innerloop.diagnostics.text import table

MANY = 20
"""The number of inner steps above which a table shows some of them."""


def shown_steps(last: int) -> list[int]:
    """The inner steps 0 … `last` that a table shows: all, or 0, 1, 2, 5, 10, 20, … and the last."""
    if last <= MANY:
        return list(range(last + 1))
    series = [lead * 10**power for power in range(len(str(last))) for lead in (1, 2, 5)]
    return [0, *(step for step in series if step < last), last]


def overall(metrics: Iterable[str]) -> list[str]:
    """The metrics of all test tasks. The names of those of a single test set have a slash."""
    return [name for name in metrics if "/" not in name]


def print_test(test: dict[str, Any], normalisation: str) -> None:
    """Every metric after each inner step: mean and interval."""
    print(f"{test['tasks']} test tasks, mean ± 95% interval; normalisation: {normalisation}")
    names, calibration = overall(test["mean"]), [test["ece"]] if "ece" in test else []
    rows = []
    for step in shown_steps(len(test["mean"]["loss"]) - 1):
        pairs = [(test["mean"][name][step], test["interval_95"][name][step]) for name in names]
        cells = [f"{mean:.4f} ± {half:.4f}" for mean, half in pairs]
        rows.append([str(step), *cells, *(f"{errors[step]:.4f}" for errors in calibration)])
    print(table(["inner steps", *names, *["calibration error" for _ in calibration]], rows, 0))


def print_trials(record: dict[str, Any]) -> None:
    """A learned optimizer against tuned ones, from the record of `optimizer_record`."""
    settings = record["settings"]
    print(
        f"{settings['tasks']} tasks of each family, {settings['steps']} steps; medians over tasks. "
        "Area: mean loss over the run. A tuned rate is the best for the last loss."
    )
    median = lambda quartiles: f"{float(quartiles[1]):.3g}"
    print(table(TRIALS, trial_rows(record["families"], median), 2))


def median_and_quartiles(quartiles: Sequence[Any]) -> str:
    """`0.31 (0.28 to 0.35)`. Numbers that are not finite are words in JSON."""
    low, middle, high = (f"{float(value):.3g}" for value in quartiles)
    return f"{middle} ({low} to {high})"


TRIALS = ["family", "optimizer", "last loss", "area", "rate"]
"""The headings of `trial_rows`."""


def trial_rows(
    families: dict[str, dict[str, dict[str, Any]]], shown: Callable[[Sequence[Any]], str]
) -> list[list[str]]:
    """The trials of each optimizer on each family.

    Args:
        families: By family and by optimizer, what `trial_record` gives.
        shown: The text for three quartiles.
    """
    rates = lambda each: f"{each['rates'][0]:.2g}" if "rates" in each else ""
    edge = lambda each: " (at the edge)" * each.get("at_the_edge", False)
    return [
        [family, name, shown(each["final"]), shown(each["area"]), rates(each) + edge(each)]
        for family, found in families.items()
        for name, each in found.items()
    ]
