"""The progress bar of a run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from innerloop.training import Progress


@contextmanager
def progress_bar(steps: int, metric: str) -> Iterator[Callable[[Progress], None]]:
    """A bar with loss, validation metric and time left; yields the function that moves it."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(10),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn(f"validation {metric} {{task.fields[validation]}}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    with Bar(*columns) as bar:
        task = bar.add_task("", total=steps, loss="…", validation="…")

        def show(progress: Progress) -> None:
            loss = f"{np.mean(progress.metrics['loss']):.4f}"
            bar.update(task, completed=progress.step, loss=loss)
            if progress.evaluation is not None:
                validation = f"{progress.evaluation.mean[metric][-1]:.4f}"
                bar.update(task, validation=validation)

        yield show
