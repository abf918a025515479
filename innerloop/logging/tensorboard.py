"""Metrics for TensorBoard."""

import os
from typing import Any

from innerloop.checks import optional_package
from innerloop.errors import RunError
from innerloop.logging.base import Logger, steps_before
from innerloop.logging.records import scalars
from innerloop.training._fit import Progress

_FLUSH_SECONDS = 1
"""The most that a kill can lose. The default of tensorboardX is two minutes; if a checkpoint was
saved in that time, a resumed run would not repeat the lost steps."""


class TensorBoard(Logger):
    """Writes the `scalars` of each report at its outer step: `tensorboard --logdir FOLDER`.

    tensorboardX writes in a thread of its own. Old events of steps that the run repeats are hidden
    by TensorBoard's own mark for a restart.

    Args:
        folder: The folder of the events, which is made if it does not exist.

    Raises:
        RunError: If tensorboardX is not installed, or the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self._tensorboardx = optional_package("tensorboardX", "this logger", extra="tensorboard")
        self._folder = os.fspath(folder)
        self._writer: Any = None
        self._step: int | None = None

    def __enter__(self) -> "TensorBoard":
        return self

    def __call__(self, progress: Progress) -> None:
        if steps_before(progress) != self._step:
            self._close()
            self._writer = self._open_at(steps_before(progress))
        for name, value in scalars(progress).items():
            self._writer.add_scalar(name, value, progress.step)
        self._step = progress.step

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._close()
        self._step = None

    def _open_at(self, step: int) -> Any:
        try:
            return self._tensorboardx.SummaryWriter(
                self._folder,
                purge_step=step + 1,
                flush_secs=_FLUSH_SECONDS,
                # The rest of the name is the second, and TensorBoard reads in their order.
                filename_suffix=f".after-{step:09}",
            )
        except OSError as error:
            raise RunError(
                "the events for TensorBoard cannot be written",
                got=f"{self._folder}: {error.strerror or error}",
                expected="a folder that this user may write to, on a disk with space left",
                write="another folder for the run, or TensorBoard(another_folder)",
            ) from error

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
