"""Runs that differ in nothing but the seed, and what they say together."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from innerloop.lab.report.runs import Run

_PLACE_AND_SEED = ("run", "resume", "seed")
"""Where a run lies, whether it went on, and its seed: what runs of one setting may differ in."""


class OverSeeds(NamedTuple):
    """A metric over the runs of one setting.

    - `mean`: of the runs' means; `half`: half the width of its 95% interval, by Student's t with
      one degree of freedom less than runs
    - `deviation`: standard deviation of the runs' means, with one less than the runs below the sum
    - `low`, `high`: the least and the most of the means
    """

    mean: float
    half: float
    deviation: float
    low: float
    high: float


def settings(run: Run) -> dict[str, Any]:
    """The config without what does not make it another experiment."""
    kept = {name: value for name, value in run.config.items() if name not in _PLACE_AND_SEED}
    return {"experiment": run.experiment} | kept


def differing(runs: Sequence[Run]) -> Iterator[tuple[str, list[Any]]]:
    """The config fields in which the runs differ, where they lie apart, with the value of each."""
    configs = [settings(run) | {"seed": run.config.get("seed")} for run in runs]
    for name in dict.fromkeys(name for config in configs for name in config):
        values = [config.get(name) for config in configs]
        if any(value != values[0] for value in values):
            yield name, values


def same_but_for_the_seed(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups of at least two finished runs of one setting and different seeds."""
    groups: list[list[Run]] = []
    for run in runs:
        if not run.finished:
            continue
        for group in groups:
            if settings(group[0]) == settings(run):
                group.append(run)
                break
        else:
            groups.append([run])
    return [group for group in groups if len({run.config.get("seed") for run in group}) > 1]


def over_seeds(values: Sequence[float]) -> OverSeeds:
    """Mean and interval of at least two numbers, one per run."""
    from scipy.stats import t

    array = np.asarray(values, float)
    deviation = float(array.std(ddof=1))
    half = float(t.ppf(0.975, len(array) - 1)) * deviation / math.sqrt(len(array))
    return OverSeeds(float(array.mean()), half, deviation, float(array.min()), float(array.max()))
