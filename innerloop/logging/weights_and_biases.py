"""Metrics for Weights & Biases."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

from innerloop.arguments import checked, path
from innerloop.checks import optional_package
from innerloop.errors import RunError
from innerloop.logging.base import Logger, steps_before
from innerloop.logging.records import scalars
from innerloop.storage import kinds
from innerloop.storage.files import read_json, reading, strict_json, write_text
from innerloop.training.results import Progress

_MEMORY = kinds.fields({"id": kinds.text, "step": kinds.count}, rest=kinds.anything)


class WeightsAndBiases(Logger):
    """Writes the `scalars` of each report at its outer step to a run of Weights & Biases.

    Offline, everything stays in `folder`, with one `wandb/offline-run-…` for each start, which
    `wandb sync` uploads. A resumed run is the same run for Weights & Biases, whose steps cannot be
    removed: `wandb/innerloop.json` in the folder stores the id and the last step, and reports of
    repeated steps, which have the same bits, are skipped.

    Args:
        project: The name of the project.
        folder: The folder of one run, which is made if it does not exist.
        mode: `"offline"`, or `"online"` for a user who is logged in; see `wandb.init`.
        config: The settings of the run, which Weights & Biases shows beside it.

    Raises:
        RunError: If wandb is not installed, or does not start a run.
    """

    @checked(folder=path())
    def __init__(
        self,
        project: str,
        folder: str | os.PathLike[str],
        *,
        mode: str = "offline",
        config: dict[str, Any] | None = None,
    ):
        self._wandb = optional_package("wandb", "this logger", extra="wandb")
        self._project = project
        self._folder = Path(folder)
        self._memory = self._folder / "wandb" / "innerloop.json"
        self._settings = {"mode": mode, "config": json.loads(strict_json(config or {}))}
        self._run: Any = None
        self._step = 0

    def __call__(self, progress: Progress) -> None:
        if self._run is None:
            self._run, self._step = self._begin(goes_on=steps_before(progress) > 0)
        if progress.step > self._step:
            self._run.log(scalars(progress), step=progress.step)
            self._step = progress.step
            known = json.dumps({"id": self._run.id, "step": self._step})
            write_text(self._memory, known)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._run is not None:
            self._run.finish(exit_code=0 if kind is None else 1)
            self._run = None

    def _remembered(self) -> dict[str, Any]:
        with reading(
            "the steps that Weights & Biases already has are not known",
            self._memory,
            expected="a file as this logger writes it; without it, the run continues as a new "
            "run of Weights & Biases",
        ):
            return read_json(self._memory, _MEMORY)

    def _begin(self, goes_on: bool) -> tuple[Any, int]:
        """The run, and its last step."""
        known = {"id": uuid.uuid4().hex, "step": 0}
        if goes_on and os.path.lexists(self._memory):
            known = self._remembered()
        # wandb takes another folder if this one does not exist.
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        try:
            run = self._wandb.init(
                project=self._project,
                dir=self._folder,
                name=self._folder.resolve().name,
                id=known["id"],
                resume="allow",
                settings=self._wandb.Settings(console="off"),  # The progress bar is no metric.
                **self._settings,
            )
        except self._wandb.errors.Error as error:
            raise RunError(
                "Weights & Biases does not begin a run",
                got=" ".join(str(error).split()),
                expected="a project that this user may write to",
            ) from error
        return run, known["step"]
