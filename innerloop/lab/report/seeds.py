"""Runs that differ in the seed only, and their statistics."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from innerloop.lab.report.runs import Run

_PLACE_AND_SEED = ("run", "resume", "seed")
"""Runs of one setting may differ in their folder, in whether they were resumed, and in the seed."""


class OverSeeds(NamedTuple):
    """A metric over the runs of one setting.

    Attributes:
        mean: The mean of the runs' means.
        half: Half the width of its 95% interval, by Student's t with `runs - 1` degrees of freedom.
        deviation: The standard deviation of the runs' means, with `runs - 1` in the denominator.
        low: The least of the means.
        high: The most of the means.
    """

    mean: float
    half: float
    deviation: float
    low: float
    high: float


def settings(run: Run) -> dict[str, Any]:
    """The config without the fields that runs of one setting may differ in."""
    kept = {name: value for name, value in run.config.items() if name not in _PLACE_AND_SEED}
    return {"experiment": run.experiment} | kept


def differing(runs: Sequence[Run]) -> Iterator[tuple[str, list[Any]]]:
    """The names of the config fields in which the runs differ, with the value of each run."""
    configs = [settings(run) | {"seed": run.config.get("seed")} for run in runs]
    for name in dict.fromkeys(name for config in configs for name in config):
        values = [config.get(name) for config in configs]
        if any(value != values[0] for value in values):
            yield name, values


def same_but_for_the_seed(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups of at least two finished runs of one setting and different seeds."""
    finished = [run for run in runs if run.finished]
    groups = [[run for run in finished if settings(run) == settings(one)] for one in finished]
    distinct = [group for i, group in enumerate(groups) if group not in groups[:i]]
    return [group for group in distinct if len({run.config.get("seed") for run in group}) > 1]


def over_seeds(values: Sequence[float]) -> OverSeeds:
    """Mean and interval of at least two numbers, one per run."""
    from scipy.stats import t

    array = np.asarray(values, float)
    deviation = float(array.std(ddof=1))
    half = float(t.ppf(0.975, len(array) - 1)) * deviation / math.sqrt(len(array))
    return OverSeeds(float(array.mean()), half, deviation, float(array.min()), float(array.max()))
