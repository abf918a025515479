"""What a logger is, and several as one."""

import abc
from contextlib import ExitStack

from innerloop.training._fit import Progress


class Logger(abc.ABC):
    """Where a run's metrics go: `with logger: fit(..., report=logger)`.

    A run that goes on from a checkpoint repeats the steps since then. A logger sees from the first
    report where the run begins (`steps_before`), and has each step once: what it holds of later
    steps is taken back, or what is repeated is left out.
    """

    @abc.abstractmethod
    def __enter__(self) -> "Logger":
        """Begin."""

    @abc.abstractmethod
    def __call__(self, progress: Progress) -> None:
        """Log one call to the device."""

    @abc.abstractmethod
    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Write what is left; `kind` is the error that ended the run, if one did."""


class Loggers(Logger):
    """Several loggers as one, called in their order and closed in the reverse one.

    `with Loggers(JsonLines("log.jsonl"), TensorBoard("events")) as log: fit(..., report=log)`
    """

    def __init__(self, *loggers: Logger):
        self._loggers = loggers
        self._entered = ExitStack()

    def __enter__(self) -> "Loggers":
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
    """Outer steps taken before the call to the device that is reported."""
    return progress.step - len(progress.metrics["loss"])
