"""A log in a file, with one JSON object per line."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from innerloop.arguments import checked, path
from innerloop.logging.base import Logger, steps_before
from innerloop.logging.records import record
from innerloop.storage.files import read_json_lines, strict_json, write_whole, writing
from innerloop.training._fit import Progress


class JsonLines(Logger):
    """Writes one line per call to the device: step, seconds, metrics, losses, system, validation.

    Numbers that are not finite are written as the strings "NaN" and "Infinity". Each line is in the
    file when the report returns. Lines of steps that the run repeats are removed first: a run that
    starts at step 0 starts a new file.

    Args:
        path: The file. Its folder is made if it does not exist.

    Raises:
        RunError: If the file cannot be written.
    """

    @checked(path=path())
    def __init__(self, path: str | os.PathLike[str]):
        self._path = Path(path)
        self._step: int | None = None

    def __call__(self, progress: Progress) -> None:
        cure = "the same run with resume=True (--resume), once there is, or JsonLines(another_path)"
        with writing("the log", self._path, write=cure):
            if steps_before(progress) != self._step:
                self._take_back_to(steps_before(progress))
            with self._path.open("a") as file:
                file.write(strict_json(record(progress)) + "\n")
        self._step = progress.step

    def _take_back_to(self, step: int) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = _taken_back(read_json_lines(self._path), step)
        text = "".join(strict_json(line) + "\n" for line in kept)
        write_whole(self._path, lambda temporary: temporary.write_text(text))


def _taken_back(lines: list[dict[str, Any]], step: int) -> Iterator[dict[str, Any]]:
    """The lines, restricted to the steps before `step`.

    A fault that ended the run was logged with the steps before it, and the run repeats its step.
    """
    for line in lines:
        faults = [fault for fault in line.pop("faults", ()) if fault["step"] < step]
        if line.get("step", step + 1) <= step and (faults or line.get("losses") != []):
            yield line | {"faults": faults} if faults else line
