"""Metrics for TensorBoard."""

import os
from pathlib import Path
from typing import Any

from innerloop.arguments import checked, path
from innerloop.checks import optional_package
from innerloop.logging.base import Logger, steps_before
from innerloop.logging.records import scalars
from innerloop.storage.files import writing
from innerloop.training.results import Progress

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

    @checked(folder=path())
    def __init__(self, folder: str | os.PathLike[str]):
        self._tensorboardx = optional_package("tensorboardX", "this logger", extra="tensorboard")
        self._folder = Path(folder)
        self._writer: Any = None
        self._step: int | None = None

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
        cure = "TensorBoard(another_folder)"
        with writing("the events for TensorBoard", self._folder, write=cure):
            return self._tensorboardx.SummaryWriter(
                str(self._folder),
                purge_step=step + 1,
                flush_secs=_FLUSH_SECONDS,
                # The rest of the name is the time in seconds. TensorBoard reads the files by name.
                filename_suffix=f".after-{step:09}",
            )

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
