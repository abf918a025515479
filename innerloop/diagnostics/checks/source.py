"""The lines of source code that the operations of a traced program come from."""

import contextlib
import functools
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from traceback import extract_tb
from typing import NamedTuple

from jax.extend import core

from innerloop.programs import Difference, Operation


class Frame(NamedTuple):
    """A line of source code."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        if self.file.startswith(_LIBRARIES):  # its line numbers change between versions
            return f"{Path(self.file).name} of a library ({self.function.partition('.')[0]})"
        return f"{Path(self.file).name}:{self.line} ({self.function})"


def written_at(operation: Operation) -> Frame | None:
    """The innermost line outside the libraries that led to an operation.

    If there is none, the innermost line outside JAX.
    """
    # A function that is compiled separately has only its own frames; its callers' frames follow.
    frames = [frame for eqn in (operation.eqn, *operation.callers) for frame in _frames_of(eqn)]
    outside = (_outside(libraries, frames) for libraries in (_LIBRARIES, _JAX))
    return next(filter(None, outside), None)


def place_of(difference: Difference) -> str:
    """The line that led to the difference between two programs, or where to look for it."""
    place = difference.operation and written_at(difference.operation)
    return str(place) if place else "a place that no operation names"


def named_places(operations: Iterable[Operation], otherwise: str) -> str:
    """Each operation with its line, such as `sign at file.py:3 (loss)`; `otherwise` without any."""
    found = (f"{op.name.removesuffix('_call')} at {written_at(op)}" for op in operations)
    return ", ".join(dict.fromkeys(found)) or otherwise


def asked_for(operation: Operation) -> frozenset[str]:
    """The names by which the user called the JAX function that an operation is part of.

    For a method, this includes the function behind it; an operator is `_operator_floordiv`, for
    instance. Empty if a library other than JAX made the call.
    """
    for eqn in (operation.eqn, *operation.callers):
        names = [str(eqn.params.get("name", eqn.primitive.name))]
        for frame in _frames_of(eqn):
            if not frame.file.startswith(_JAX):
                called = frozenset(name.split(".")[0].lstrip("_") for name in names[-2:])
                return frozenset() if frame.file.startswith(_LIBRARIES) else called
            if Path(frame.file).name not in _MACHINERY:
                names.append(frame.function)
    return frozenset()


def raised_at(error: BaseException) -> Frame | None:
    """The innermost line outside the libraries in the traceback of an exception."""
    frames = [Frame(f.filename, f.lineno or 0, f.name) for f in extract_tb(error.__traceback__)]
    return _outside(_LIBRARIES, reversed(frames))


def is_library(module: str) -> bool:
    """Whether a module name belongs to Python itself or to a library that is known here."""
    root = module.partition(".")[0]
    return root in sys.stdlib_module_names - {"__main__"} or root in _PACKAGES


def of_package(frame: Frame, package: str) -> bool:
    """Whether a line belongs to a package that is installed."""
    return frame.file.startswith(_folders(package))


def _frames_of(eqn: core.JaxprEqn) -> list[Frame]:
    traceback = eqn.source_info.traceback
    frames = traceback.frames if traceback is not None else ()
    return [Frame(frame.file_name, frame.line_num, frame.function_name) for frame in frames]


def _outside(libraries: tuple[str, ...], frames: Iterable[Frame]) -> Frame | None:
    """The first frame outside some libraries."""
    return next((frame for frame in frames if not frame.file.startswith(libraries)), None)


def _folders(*packages: str) -> tuple[str, ...]:
    specs = map(find_spec, packages)
    return tuple(f"{Path(spec.origin).parent}/" for spec in specs if spec and spec.origin)


_OF_JAX = ("jax", "jaxlib", "equinox", "jaxtyping", "beartype")
_PACKAGES = (*_OF_JAX, "optax", "lineax", "optimistix", "innerloop", "numpy", "scipy")
_GLUE = ("<", contextlib.__file__, functools.__file__)
"""Generated code, and files of Python that JAX's own calls pass through."""
_JAX = (*_GLUE, *_folders(*_OF_JAX))
_LIBRARIES = (*_GLUE, *_folders(*_PACKAGES))
_MACHINERY = (
    *("source_info_util.py", "partial_eval.py", "core.py", "pjit.py", "traceback_util.py"),
    *("api.py", "batching.py", "linear_util.py", "tree_util.py", "tree.py"),
)
"""Files of JAX that calls pass through."""
