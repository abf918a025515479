"""What `fit` saves and goes on from: the state, the best so far, and where in the run it was."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from innerloop.devices.processes import in_any
from innerloop.errors import RunError, StructureError
from innerloop.storage.checkpoint import CheckpointFolder, Checkpoints
from innerloop.training.outer_loop import Kept, TrainState
from innerloop.training.signals import Stopped, signals_deferred
from innerloop.training.validation import Validator


class _Saved(NamedTuple):
    """All that a run needs to go on. `best` is the state's average where nothing was validated."""

    state: TrainState
    best: Kept


class _Saving:
    """The checkpoints of a run that `fit` makes."""

    def __init__(
        self, folder: CheckpointFolder, resume: bool, stopped_by: Callable[[], int | None]
    ):
        self._folder = folder
        self._resume = resume
        self._stopped_by = stopped_by
        self._step = 0
        self.every = folder.every

    def begun(
        self,
        begin: Callable[..., TrainState],
        kept: Callable[[TrainState], Kept],
        validate: Validator,
        steps: int,
    ) -> tuple[TrainState, float]:
        """The state to continue from and the seconds spent so far; a new run's if none was saved.

        Args:
            begin: Makes the state of a run at an outer step, in the structure of the saved one.
            kept: What is kept of a state as the best.
            validate: Receives the best meta-parameters so far and their score.
            steps: Outer steps of the whole run.

        Raises:
            RunError: The saved state has taken more than `steps` outer steps, or there is one
                although `resume` is False.
        """
        if not self._resume:
            self._folder.require_none()
            return begin(), 0.0

        def like(step: int, record: dict[str, Any]) -> _Saved:
            # The best may be of an earlier phase, whose model state may have another structure.
            last = (record["best_step"] or step) - 1
            return _Saved(begin(step), kept(begin(max(last, 0))))

        found = self._folder.load(like)
        if found is None:
            return begin(), 0.0
        (state, best), record = found
        self._step = int(state.step)
        if self._step > steps:
            raise RunError(
                "the run has already taken more steps than asked for",
                got=f"steps={steps}, and a checkpoint at outer step {self._step}",
                expected="as many steps as were taken, or more",
                write=f"fit(..., steps={self._step}, resume=True) (--steps {self._step})",
            )
        if record["best_step"] is not None:
            validate.best, validate.score = (best, record["best_step"]), record["score"]
        return state, record["seconds"]

    def save(
        self, state: TrainState, now: Kept, validate: Validator, seconds: float, last: bool
    ) -> None:
        """Save if it is due, at the end of the run, and before a signal ends the run."""
        self._step = step = int(state.step)
        number = self._asked()
        if last or number is not None or step % self.every == 0:
            best, best_step = validate.best or (now, None)
            # A score of minus infinity is no JSON number.
            record = {"best_step": best_step, "score": str(validate.score), "seconds": seconds}
            self._folder.save(step, _Saved(state, best), record)
        if number is not None:
            raise Stopped(number, step)

    def stop_if_asked(self) -> None:
        """Raise `Stopped` for a signal that came since."""
        number = self._asked()
        if number is not None:
            raise Stopped(number, self._step)

    def _asked(self) -> int | None:
        """The signal that asks to stop. Where it came to one process, all stop and save."""
        number = self._stopped_by()
        return (number or signal.SIGTERM) if in_any(number is not None) else None


class _NotSaving:
    """A run without checkpoints."""

    every = None

    def begun(self, begin: Callable[..., TrainState], *_: Any) -> tuple[TrainState, float]:
        return begin(), 0.0

    def save(self, *_: Any, **__: Any) -> None:
        pass


@contextmanager
def training_saved(
    checkpoints: Checkpoints | None, settings: dict[str, Any], resume: bool
) -> Iterator[_Saving | _NotSaving]:
    """Open the checkpoints of a run, if it has any; close them however the run ends."""
    if checkpoints is None and resume:
        raise StructureError(
            "there is nothing to resume from without checkpoints",
            got="fit(..., resume=True, checkpoints=None)",
            expected="the checkpoints that the run was saved to",
            write="fit(..., checkpoints=training.Checkpoints(folder), resume=True)",
        )
    if checkpoints is None:
        yield _NotSaving()
        return
    with signals_deferred() as stopped_by:
        folder = CheckpointFolder(checkpoints, settings)
        saving = _Saving(folder, resume, stopped_by)
        try:
            yield saving
        finally:
            folder.close()
        saving.stop_if_asked()  # it came during the last save
