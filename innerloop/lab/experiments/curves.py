"""The figures that every run has: the learning curves, and the adaptation to test tasks."""

from pathlib import Path
from typing import Any

import numpy as np

from innerloop.lab import plots
from innerloop.lab.run_folder import RunFolder
from innerloop.training import Evaluation


def draw_curves(
    folder: RunFolder, metric: str, test: Evaluation, name: str, trained_steps: int
) -> None:
    """Draw the curves of a run. Without a log, there are no learning curves."""
    records = folder.read_log()
    if records:
        _draw_learning(folder.path, records, metric, name)
    plots.adaptation_curve(
        folder.path / "adaptation_curve.png",
        mean=test.mean[metric],
        interval=test.interval[metric],
        metric=metric,
        trained_steps=trained_steps,
        title=f"{name}: {test.tasks} test tasks",
    )


def _draw_learning(path: Path, records: list[dict[str, Any]], metric: str, name: str) -> None:
    # As floats, because numbers that are not finite are strings in the log.
    losses = [np.asarray(record["losses"], float) for record in records]
    ends = [record["step"] for record in records]  # The first lines may be lost.
    validated = [record for record in records if "validation" in record]
    values = [record["validation"]["mean"][metric][-1] for record in validated]
    steps, seconds = ([record[name] for record in validated] for name in ("step", "seconds"))
    numbered = [np.arange(end - len(x), end) + 1 for end, x in zip(ends, losses, strict=True)]
    plots.learning_curve(
        path / "learning_curve.png",
        steps=np.concatenate(numbered),
        losses=np.concatenate(losses),
        validation_steps=np.asarray(steps),
        validation=np.asarray(values, float),
        metric=metric,
        title=f"{name}: meta-training",
    )
    plots.validation_over_time(
        path / "validation_over_time.png",
        minutes=np.asarray(seconds) / 60,
        validation=np.asarray(values, float),
        metric=metric,
        title=f"{name}: validation against wall-clock",
    )
