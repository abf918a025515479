"""Loggers of a run: its progress in the terminal, and the best meta-parameters so far."""

from typing import Any

from rich import get_console
from rich import progress as rich
from rich.progress import TextColumn

from innerloop.lab.run_folder import RunFolder
from innerloop.logging import Logger
from innerloop.training import Progress


class ProgressBar(Logger):
    """A bar with loss, validation metric and time left.

    Args:
        steps: Outer steps of the whole run; None if they are not known.
        metric: The metric of the validation.
        folder: The folder of the run, whose log says how far it has come if it is resumed.
    """

    def __init__(self, steps: int | None, metric: str, folder: RunFolder):
        self._metric = metric
        self._steps = steps
        self._folder = folder
        self._bar = rich.Progress(
            rich.BarColumn(10),
            rich.MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn(f"validation {metric} {{task.fields[validation]}}"),
            rich.TimeRemainingColumn(compact=True),
            TextColumn("left"),
        )
        self._task = self._bar.add_task("", total=steps, loss="…", validation="…")

    def __enter__(self) -> "ProgressBar":
        for line in self._folder.read_log()[-1:]:  # A finished run reports nothing more.
            if self._steps is not None and line["step"] > self._steps:
                return self  # the run may be refused, for steps that it has taken
            loss = f"{line['loss']:.4f}" if "loss" in line else "…"
            self._bar.update(self._task, completed=line["step"], loss=loss)
        self._bar.start()
        return self

    def __call__(self, progress: Progress) -> None:
        shown: dict[str, Any] = {"loss": f"{progress.means()['loss']:.4f}"}
        if progress.evaluation is not None and self._metric in progress.evaluation.mean:
            shown["validation"] = f"{progress.evaluation.mean[self._metric][-1]:.4f}"
        self._bar.update(self._task, completed=progress.step, **shown)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._bar.live.is_started:
            self._bar.stop()


class ProgressLines(Logger):
    """A line after each call to the device, for output that is no terminal.

    Args:
        folder: The folder of the run, whose log says how far it has come if it is resumed.
    """

    def __init__(self, folder: RunFolder):
        self._folder = folder

    def __enter__(self) -> "ProgressLines":
        for line in self._folder.read_log()[-1:]:  # A finished run reports nothing more.
            print(f"step {line['step']:,} is in the log", flush=True)
        return self

    def __call__(self, progress: Progress) -> None:
        print(progress, flush=True)


def progress_display(steps: int | None, metric: str, folder: RunFolder) -> Logger:
    """A bar in a terminal or a notebook, and lines elsewhere; see `ProgressBar`."""
    console = get_console()
    shows_bars = console.is_terminal or console.is_jupyter
    return ProgressBar(steps, metric, folder) if shows_bars else ProgressLines(folder)


class BestMeta(Logger):
    """Writes the best meta-parameters so far into the run's folder."""

    def __init__(self, folder: RunFolder):
        self._folder = folder

    def __call__(self, progress: Progress) -> None:
        if progress.best:
            self._folder.save_meta(progress.meta)
