"""A run folder, a progress bar and a page of the report for your own `fit`."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from innerloop.arguments import at_least, checked, flag, path
from innerloop.devices.processes import is_first
from innerloop.errors import RunError, StructureError
from innerloop.lab.experiments.curves import draw_curves, series
from innerloop.lab.recording import held_folder, outcome_record, run_logger
from innerloop.lab.run_folder import CHECKPOINTS, OWN, RESULT, SETTINGS, RunFolder
from innerloop.logging import Logger
from innerloop.storage.files import strict_json
from innerloop.training import Checkpoints, Evaluation, Fit


class OwnRun:
    """A run of your own `fit`, which `own_run` opens.

    Attributes:
        path: The folder of the run.
        report: The argument `report` of `fit`. It writes the log and the best meta-parameters. In a
            terminal or a notebook, it shows a progress bar; elsewhere, it prints a line after each
            call to the device.
        checkpoints: The argument `checkpoints` of `fit`.
    """

    path: Path
    report: Logger
    checkpoints: Checkpoints

    def __init__(
        self, folder: RunFolder, content: dict[str, Any], report: Logger, checkpoints: Checkpoints
    ):
        self.path, self.report, self.checkpoints = folder.path, report, checkpoints
        self._folder, self._content, self._begin = folder, content, time.perf_counter()

    def finish(self, outcome: Fit, evaluation: Evaluation | None = None) -> dict[str, Any]:
        """Writes the result of the run, its best meta-parameters and its figures.

        Args:
            outcome: The result of `fit`.
            evaluation: The evaluation of the best meta-parameters on the test tasks. If it is None,
                no figures are drawn, and a report shows the run as unfinished.

        Returns:
            The content of `result.json`.

        Raises:
            StructureError: If the evaluation does not contain the metric of the run.
            RunError: If the folder cannot be written.
        """
        metric = self._content["metric"]
        if evaluation is not None and metric not in evaluation.mean:
            raise StructureError(
                f"the evaluation does not have the metric of the run, {metric}",
                got=f"an evaluation with {', '.join(evaluation.mean)}",
                expected="own_run(..., metric=...) with one of these",
            )
        seconds, log = time.perf_counter() - self._begin, series(self._folder.read_log(), metric)
        learner = outcome.learner
        trained = 0 if learner is None else learner.adaptation.steps or 0
        shapes = lambda key: outcome.meta
        result = {
            **self._content,
            "trained_steps": trained,
            **outcome_record(outcome, shapes, log, evaluation, seconds),
        }
        if is_first():
            self._folder.save_meta(outcome.meta)
            self._folder.write_json(RESULT, result)
            if evaluation is not None:
                with self._folder.writing():
                    judged = (log, metric, evaluation, trained)
                    draw_curves(self.path, self.path.resolve().name, *judged)
        return result


@contextmanager
@checked("own_run", path=path(), save_every=at_least(1, such_as=500), resume=flag())
def own_run(
    path: str | os.PathLike[str],
    config: Mapping[str, Any] | None = None,
    *,
    metric: str = "loss",
    save_every: int = 500,
    resume: bool = False,
) -> Iterator[OwnRun]:
    """Records your own `fit` in a run folder, as `innerloop train` records an experiment.

    ```python
    with il.lab.own_run("runs/mine", {"seed": 0, "steps": 1000}) as run:
        outcome = il.fit(..., steps=1000, report=run.report, checkpoints=run.checkpoints)
        run.finish(outcome, il.evaluate(outcome.learner, outcome.meta, episodes, key))
    ```

    Afterwards, `innerloop report runs/mine` shows the run, alone or beside others, and
    `il.training.load_meta("runs/mine/best.eqx", like)` reads its best meta-parameters. No other
    process can open the run for writing until the `with` block ends.

    Args:
        path: The folder. It is created if it does not exist.
        config: The settings of the run, which the report shows: numbers, text, and lists and
            dictionaries of them. `seed`, `steps` and `batch` must be whole numbers. The progress
            bar counts to `steps`.
        metric: The metric by which the report judges the run.
        save_every: The number of outer steps between checkpoints.
        resume: Whether to continue the run in the folder, if there is one. Also pass `resume=True`
            to `fit`, which compares the settings that matter.

    Returns:
        A context manager that yields an `OwnRun`.

    Raises:
        StructureError: If the settings cannot be written as JSON.
        RunError: If the folder contains a run and `resume` is False, if it contains a run of an
            experiment, if it cannot be written, or if another process writes to it.
    """
    folder = Path(path)
    settings = _recorded(config or {})
    held = RunFolder(folder).held()
    if held and not resume:
        raise RunError(
            "there is a run in this folder already",
            got=f"{folder}, with {held[0]}",
            expected="a folder without a run, or resume=True here and in fit",
            write="own_run(..., resume=True), or own_run(another_folder, ...)",
        )
    content = {"experiment": OWN, "config": settings, "metric": metric}
    with (
        held_folder(folder, content, tuple(settings) if resume else None) as opened,
        run_logger(opened, settings.get("steps"), metric) as log,
    ):
        yield OwnRun(opened, content, log, Checkpoints(folder / CHECKPOINTS, save_every))


def _recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings as they are read back from JSON."""
    try:
        return SETTINGS(json.loads(strict_json(dict(config))))
    except (TypeError, ValueError) as error:
        raise StructureError(
            "the settings of a run cannot be recorded",
            got=f"{type(error).__name__}: {error}",
            expected="numbers, text, and lists and dictionaries of them; seed, steps and batch "
            "must be whole numbers",
        ) from error
