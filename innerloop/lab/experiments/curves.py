"""The figures that every run has: the learning curves, and the adaptation to test tasks."""

from typing import Any

import numpy as np

from innerloop.lab import plots
from innerloop.lab.run_folder import RunFolder
from innerloop.training import Evaluation


def draw_curves(
    folder: RunFolder, metric: str, test: Evaluation, name: str, trained_steps: int
) -> None:
    """Draw the curves of a run. Without a log, there are no learning curves."""
    records, path = folder.read_log(), folder.path
    if records:
        # As floats, because numbers that are not finite are strings in the log.
        losses = [np.asarray(record["losses"], float) for record in records]
        ends = [record["step"] for record in records]  # The first lines may be lost.
        steps = [np.arange(end - len(x), end) + 1 for end, x in zip(ends, losses, strict=True)]
        validated = [record for record in records if "validation" in record]
        column = lambda key: np.asarray([record[key] for record in validated])
        values = [record["validation"]["mean"][metric][-1] for record in validated]
        common: dict[str, Any] = {"validation": np.asarray(values, float), "metric": metric}
        plots.learning_curve(
            path / "learning_curve.png",
            steps=np.concatenate(steps),
            losses=np.concatenate(losses),
            validation_steps=column("step"),
            title=f"{name}: meta-training",
            **common,
        )
        plots.validation_over_time(
            path / "validation_over_time.png",
            minutes=column("seconds") / 60,
            title=f"{name}: validation against wall-clock",
            **common,
        )
    plots.adaptation_curve(
        path / "adaptation_curve.png",
        mean=test.mean[metric],
        interval=test.interval[metric],
        metric=metric,
        trained_steps=trained_steps,
        title=f"{name}: {test.tasks} test tasks",
    )
