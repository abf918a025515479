"""The interface of loggers, and several loggers as one."""

import abc
from contextlib import ExitStack

from innerloop.training.results import Progress


class Logger(abc.ABC):
    """Writes the metrics of a run: `with logger: fit(..., report=logger)`.

    A run that goes on from a checkpoint repeats the steps since then. A logger sees from the first
    report where the run begins (`steps_before`), and has each step once: what it holds of later
    steps is taken back, or what is repeated is left out.
    """

    def __enter__(self) -> "Logger":
        """Start the log."""
        return self

    @abc.abstractmethod
    def __call__(self, progress: Progress) -> None:
        """Log one call to the device."""

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Write the rest. `kind` is the type of the error that ended the run, if there was one."""
        return


class Loggers(Logger):
    """Several loggers as one, called in their order and closed in reverse order.

    `with Loggers(JsonLines("log.jsonl"), TensorBoard("events")) as log: fit(..., report=log)`
    """

    def __init__(self, *loggers: Logger):
        self._loggers = loggers
        self._entered = ExitStack()

    def __enter__(self) -> "Logger":
        with ExitStack() as entered:
            for logger in self._loggers:
                entered.enter_context(logger)
            self._entered = entered.pop_all()
        return self

    def __call__(self, progress: Progress) -> None:
        for logger in self._loggers:
            logger(progress)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._entered.__exit__(kind, *rest)  # pyright: ignore[reportArgumentType]


def steps_before(progress: Progress) -> int:
    """The number of outer steps before the call to the device that is reported."""
    return progress.step - len(progress.metrics["loss"])
