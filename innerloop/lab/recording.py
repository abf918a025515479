"""How a run records itself in its folder: held while it is written, logged, and with its result."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from jaxtyping import PRNGKeyArray, PyTree

from innerloop.devices.processes import is_first, together
from innerloop.lab.experiments.cost import outer_step_record
from innerloop.lab.experiments.curves import Log
from innerloop.lab.experiments.progress import BestMeta, progress_display
from innerloop.lab.run_folder import LOG, RunFolder, environment
from innerloop.logging import JsonLines, Logger, Loggers
from innerloop.logging.records import evaluation_record
from innerloop.training import Evaluation, Fit


@contextmanager
def held_folder(
    path: Path, config: dict[str, Any], may_change: Sequence[str] | None
) -> Iterator[RunFolder]:
    """Begin a run or go on with it; see `RunFolder.begin`. Of several processes the first writes.

    The folder is free again at the end. What was made is removed if the run fails before its first
    step.
    """
    with together():
        begin = lambda: RunFolder.begin(path, config, may_change=may_change)
        folder = begin() if is_first() else RunFolder(path)
    with closing(folder):
        try:
            yield folder
        except Exception:
            folder.discard()
            raise


def run_logger(
    folder: RunFolder, steps: int | None, metric: str, others: Sequence[Logger] = ()
) -> Logger:
    """The log in the folder, the best meta-parameters, the progress, and other loggers.

    Args:
        folder: The folder of the run.
        steps: Outer steps of the whole run; None if they are not known.
        metric: The metric of the validation.
        others: More loggers.
    """
    if not is_first():
        return Loggers()
    progress = progress_display(steps, metric, folder)
    # The first removes damaged lines.
    return Loggers(JsonLines(folder.path / LOG), BestMeta(folder), progress, *others)


def outcome_record(
    outcome: Fit,
    init_meta: Callable[[PRNGKeyArray], PyTree],
    log: Log,
    test: Evaluation | None,
    seconds: float,
) -> dict[str, Any]:
    """The entries of `result.json` about the outcome of `fit`.

    Args:
        outcome: The outcome.
        init_meta: The initial meta-parameters, of which only the shapes are read.
        log: The series in the log of the run.
        test: The evaluation on the test tasks, if there is one.
        seconds: Seconds since the run began or went on.
    """
    return {
        "environment": environment(),
        "outer_steps": outcome.step,
        "best_step": outcome.best_step,
        "faults": outcome.faults,
        # The log also counts the time before the run was resumed.
        "seconds": max(seconds, log.seconds),
        "chunk": outcome.estimator.tasks_at_once,
        "plan": None if outcome.plan is None else outcome.plan.summary(),
        "cost": log.cost | outer_step_record(outcome.estimator, init_meta),
        **({} if test is None else {"test": evaluation_record(test)}),
    }
