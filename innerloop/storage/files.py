"""Atomic writes of files, and JSON that any parser reads."""

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from innerloop.errors import InnerloopError, RunError


def write_whole(path: Path, write: Callable[[Path], Any]) -> Path:
    """Write a file so that a reader, or a run after a kill, finds all of it or nothing.

    Args:
        path: The file. Its folder has to exist.
        write: Writes to the path of a temporary file, which is then moved into place.

    Returns:
        `path`.

    Raises:
        OSError: If the file cannot be written.
    """
    # With the same suffix, because equinox and numpy add their own to names without one.
    writer = f"{os.getpid()}-{threading.get_native_id()}"
    temporary = path.with_name(f".{path.name}.{writer}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def writing(
    what: str, path: Path, *, write: str, refusals: tuple[type[Exception], ...] = (OSError,)
) -> Iterator[None]:
    """A context in which an error of the disk becomes a `RunError` of one line.

    Args:
        what: The name of the content, for the error.
        path: The file or folder that is written.
        write: The cure, for the error.
        refusals: The exceptions that mean that the path cannot be written.
    """
    try:
        yield
    except InnerloopError:
        raise
    except refusals as error:
        raise RunError(
            f"{what} cannot be written",
            got=f"{path}: {_reason(error)}",
            expected="a place that this user may write to, on a disk with space left",
            write=write,
        ) from error


def _reason(error: Exception) -> str:
    """The reason on one line: Orbax's storage layer names many files, and the reason last."""
    strerror = getattr(error, "strerror", None)
    return strerror or " ".join(str(error).split()).rsplit(": ", 1)[-1].split(" [", 1)[0]


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a log, or none if there is no file.

    Lines that a kill cut short, or that are no objects, are left out.
    """
    records = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_bytes().splitlines():  # A damaged one may be no text.
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]


def strict_json(content: Any, indent: int | None = None) -> str:
    """JSON that any parser reads: numbers that are not finite become "NaN" or "Infinity"."""
    loose = json.dumps(content, default=_to_json)
    return json.dumps(json.loads(loose, parse_constant=str), indent=indent, allow_nan=False)


def _to_json(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
