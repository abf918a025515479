"""Results as tables in the terminal."""

from collections.abc import Callable, Sequence
from typing import Any

from innerloop.diagnostics.text import table
from innerloop.lab.experiments.curves import read_evaluation
from innerloop.logging.records import evaluation


def print_test(test: dict[str, Any], normalisation: str) -> None:
    """The evaluation on the test tasks, as a table."""
    print(f"test, normalisation: {normalisation}\n{read_evaluation(evaluation(test))}")


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
