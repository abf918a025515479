"""A log in a file, with one JSON object per line."""

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from innerloop.arguments import checked, path
from innerloop.logging.base import Logger, steps_before
from innerloop.logging.records import LINE, record
from innerloop.storage.files import (
    plain_file,
    read_json_lines,
    reading,
    strict_json,
    write_text,
    writing,
)
from innerloop.training.results import Progress


class JsonLines(Logger):
    """Writes one line per call to the device: step, seconds, metrics, losses, system, validation.

    Numbers that are not finite are written as the strings "NaN" and "Infinity". Each line is in the
    file when the report returns. Lines of steps that the run repeats are removed first: a run that
    starts at step 0 starts a new file. Lines that are damaged are removed, too.

    Args:
        path: The file. Its folder is made if it does not exist.

    Raises:
        RunError: If the file cannot be written, or there is a pipe, a device or a folder in its
            place.
    """

    @checked(path=path())
    def __init__(self, path: str | os.PathLike[str]):
        self._path = Path(path)
        self._step: int | None = None

    def __enter__(self) -> "JsonLines":
        # A finished run that is resumed reports nothing more, but is drawn from its log.
        if os.path.lexists(self._path):
            self._keep(self._lines())
        return self

    def __call__(self, progress: Progress) -> None:
        if steps_before(progress) != self._step:
            self._keep(_taken_back(self._lines(), steps_before(progress)))
        with self._writing(), plain_file(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND) as file:
            file.write(f"{strict_json(record(progress))}\n".encode())
        self._step = progress.step

    def _lines(self) -> list[dict[str, Any]]:
        """The lines so far, without those that are damaged."""
        if not os.path.lexists(self._path):
            return []
        with reading(
            "the log cannot be read",
            self._path,
            expected="a file as JsonLines writes it",
            write=f"rm -r {self._path}",
        ):
            return [line for line in read_json_lines(self._path, _line_or_none) if line is not None]

    def _keep(self, lines: Iterable[dict[str, Any]]) -> None:
        with self._writing():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, "".join(strict_json(line) + "\n" for line in lines))

    def _writing(self) -> AbstractContextManager[None]:
        cure = "the same run with resume=True (--resume), once there is, or JsonLines(another_path)"
        return writing("the log", self._path, write=cure)


def _line_or_none(content: Any) -> dict[str, Any] | None:
    try:
        return LINE(content)
    except ValueError:
        return None


def _taken_back(lines: list[dict[str, Any]], step: int) -> Iterator[dict[str, Any]]:
    """The lines, restricted to the steps before `step`.

    A fault that ended the run was logged with the steps before it, and the run repeats its step.
    """
    for line in lines:
        faults = [fault for fault in line.pop("faults", ()) if fault["step"] < step]
        if line["step"] <= step and (faults or len(line.get("losses", (0,)))):
            yield line | {"faults": faults} if faults else line
