"""The series in the log of a run, and the figures that every run has."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from innerloop.lab import plots
from innerloop.lab.experiments.cost import training_cost
from innerloop.training import Evaluation


class Log(NamedTuple):
    """The series in the log of a run.

    Attributes:
        outer_steps: Outer steps, as far as the log goes.
        seconds: Seconds, as far as the log goes.
        cost: The figures of `training_cost`.
        steps: `(n,)`, the outer steps whose loss is in the log; its first lines may be lost.
        losses: `(n,)`, the loss of each of these outer steps.
        norms: `(2, calls)`, by call to the device: its last outer step, and the mean norm of the
            meta-gradient.
        validations: `(4, m)`, by validation: the outer step, the minutes since the run began, the
            metric, and half the width of its 95% interval.
        faults: The outer steps whose gradient was not finite.
    """

    outer_steps: int
    seconds: float
    cost: dict[str, float]
    steps: np.ndarray
    losses: np.ndarray
    norms: np.ndarray
    validations: np.ndarray
    faults: list[dict[str, Any]]


def series(records: Sequence[dict[str, Any]], metric: str) -> Log:
    """The series in the lines of a log, of the metric by which the run is judged."""
    numbers = lambda values: np.asarray(values, float)
    losses = [numbers(record.get("losses", [])) for record in records]
    ends = [record["step"] for record in records]
    steps = [np.arange(end - len(x), end) + 1 for end, x in zip(ends, losses, strict=True)]
    norms = [(x["step"], x["gradient_norm"]) for x in records if "gradient_norm" in x]
    validations = []
    for record in (record for record in records if "validation" in record):
        test = read_evaluation(record["validation"])
        if metric in test.mean:
            score = (test.mean[metric][-1], test.interval[metric][-1])
            validations.append((record["step"], record["seconds"] / 60, *score))
    return Log(
        outer_steps=int(ends[-1]) if records else 0,
        seconds=float(records[-1]["seconds"]) if records else 0.0,
        cost=training_cost(records),
        steps=np.concatenate([np.zeros(0), *steps]),
        losses=np.concatenate([np.zeros(0), *losses]),
        norms=numbers(norms).reshape(-1, 2).T,
        validations=numbers(validations).reshape(-1, 4).T,
        faults=[dict(fault) for record in records for fault in record.get("faults", [])],
    )


def read_evaluation(record: dict[str, Any]) -> Evaluation:
    """The evaluation of a record, with the metrics over all of its tasks only.

    Args:
        record: What `innerloop.logging.records.evaluation` reads.
    """
    mean = {name: record["mean"][name] for name in overall(record["mean"])}
    interval = {name: record["interval_95"][name] for name in mean}
    return Evaluation(mean, interval, record["tasks"], record.get("ece"))


def overall(metrics: Iterable[str]) -> list[str]:
    """The metrics of all test tasks. The names of those of a single test set have a slash."""
    return [name for name in metrics if "/" not in name]


def draw_curves(
    folder: Path, name: str, log: Log, metric: str, test: Evaluation, trained_steps: int
) -> None:
    """Draw the curves of a run. Without a log, there are no learning curves."""
    validated, minutes, scores, _ = log.validations
    common: dict[str, Any] = {"validation": scores, "metric": metric}
    if len(log.losses):
        plots.learning_curve(
            folder / "learning_curve.png",
            steps=log.steps,
            losses=log.losses,
            validation_steps=validated,
            title=f"{name}: meta-training",
            **common,
        )
        plots.validation_over_time(
            folder / "validation_over_time.png",
            minutes=minutes,
            title=f"{name}: validation against wall-clock",
            **common,
        )
    plots.adaptation_curve(
        folder / "adaptation_curve.png",
        mean=test.mean[metric],
        interval=test.interval[metric],
        metric=metric,
        trained_steps=trained_steps,
        title=f"{name}: {test.tasks} test tasks",
    )
