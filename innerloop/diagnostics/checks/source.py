"""The lines of source code that operations of a traced program come from."""

import contextlib
import functools
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from innerloop.programs import Operation


class Frame(NamedTuple):
    """A line of source code."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        if _of_a_library(self):  # whose lines move from version to version
            return f"{Path(self.file).name} of a library ({self.function.partition('.')[0]})"
        return f"{Path(self.file).name}:{self.line} ({self.function})"


def written_at(operation: Operation) -> Frame | None:
    """The innermost line outside the libraries that asked for an operation.

    Where there is none, the innermost outside JAX.
    """
    frames = _frames(operation)
    for ours in (_of_a_library, _of_jax):
        for frame in frames:
            if not ours(frame):
                return frame
    return None


def written_by_the_user(operation: Operation, function: str) -> bool:
    """Whether `function`, JAX's own, was called by the user and not by a library for its ends."""
    frames = iter(_frames(operation))
    for frame in frames:
        if frame.function == function:
            caller = next((f for f in frames if f.function != function), None)
            return caller is not None and not _of_a_library(caller)
    return False


def called_through(operation: Operation, functions: tuple[str, ...]) -> bool:
    """Whether one of these functions asked for an operation, directly or not."""
    return any(frame.function in functions for frame in _frames(operation))


def _frames(operation: Operation) -> list[Frame]:
    """Innermost first. What is compiled by itself knows its own lines, its caller the rest."""
    tracebacks = [eqn.source_info.traceback for eqn in (operation.eqn, *operation.callers)]
    return [
        Frame(frame.file_name, frame.line_num, frame.function_name)
        for traceback in tracebacks
        if traceback is not None
        for frame in traceback.frames
    ]


def _of_jax(frame: Frame) -> bool:
    return frame.file.startswith((*_JAX, "<")) or frame.file in _GLUE


def _of_a_library(frame: Frame) -> bool:
    return frame.file.startswith((*_LIBRARIES, "<")) or frame.file in _GLUE


def _folder(package: str) -> str | None:
    spec = find_spec(package)
    return str(Path(spec.origin).parent) + "/" if spec and spec.origin else None


def _folders(*packages: str) -> tuple[str, ...]:
    return tuple(folder for folder in map(_folder, packages) if folder is not None)


_JAX = _folders("jax", "jaxlib", "equinox", "jaxtyping", "beartype")
_LIBRARIES = (*_JAX, *_folders("optax", "lineax", "optimistix", "innerloop"))
_GLUE = (contextlib.__file__, functools.__file__)
