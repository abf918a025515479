"""What the command line does with a report beside logging it: the bar, the best so far."""

from typing import Any

from innerloop.lab.run_folder import RunFolder
from innerloop.logging import Logger
from innerloop.logging.records import means
from innerloop.training import Progress


class ProgressBar(Logger):
    """A bar with loss, validation metric and time left."""

    def __init__(self, steps: int, metric: str):
        self._steps = steps
        self._metric = metric
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "ProgressBar":
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
            TextColumn(f"validation {self._metric} {{task.fields[validation]}}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
        )
        self._bar = Bar(*columns)
        self._task = self._bar.add_task("", total=self._steps, loss="…", validation="…")
        self._bar.start()
        return self

    def __call__(self, progress: Progress) -> None:
        loss = f"{means(progress)['loss']:.4f}"
        self._bar.update(self._task, completed=progress.step, loss=loss)
        if progress.evaluation is not None:
            validation = f"{progress.evaluation.mean[self._metric][-1]:.4f}"
            self._bar.update(self._task, validation=validation)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._bar.stop()


class BestMeta(Logger):
    """The best meta-parameters so far, in the run's folder."""

    def __init__(self, folder: RunFolder):
        self._folder = folder

    def __enter__(self) -> "BestMeta":
        return self

    def __call__(self, progress: Progress) -> None:
        if progress.best:
            self._folder.save_meta(progress.meta)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        pass
