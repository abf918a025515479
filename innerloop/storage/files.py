"""Plain files, which are not trusted and are written as a whole; JSON that any parser reads."""

import contextlib
import errno
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from innerloop.errors import InnerloopError, RunError

READ_AT_MOST = 2**31
"""The largest size, in bytes, of a file that is read into memory as a whole."""


@contextlib.contextmanager
def plain_file(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> Iterator[BinaryIO]:
    """Open a plain file, in binary; anything else is refused before a byte is read or written.

    A pipe or a device would keep its reader waiting. A link is refused if the file is opened for
    writing, because the file that the link points to would be written.

    Args:
        path: The file.
        flags: The flags for `os.open`. A new file gets the usual permissions.

    Raises:
        OSError: If the path cannot be opened or is not a plain file.
    """
    writes = bool(flags & (os.O_WRONLY | os.O_RDWR))
    flags |= os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (os.O_NOFOLLOW if writes else 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "this is not a plain file", str(path))
        if writes and found.st_nlink > 1:
            raise OSError(errno.EMLINK, "the file has another name (a hard link)", str(path))
        file = os.fdopen(descriptor, "r+b" if writes else "rb", closefd=False)
        with file:
            yield file
    finally:
        os.close(descriptor)


def read_bytes(path: str | os.PathLike[str], at_most: int = READ_AT_MOST) -> bytes:
    """The content of a plain file.

    Raises:
        OSError: If the file cannot be read, is not a plain file, or has more than `at_most` bytes.
    """
    with plain_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > at_most:
            raise OSError(errno.EFBIG, f"{size:,} bytes, more than {at_most:,}", str(path))
        return file.read(at_most)


def read_json(path: str | os.PathLike[str], kind: Callable[[Any], Any]) -> Any:
    """The content of a JSON file, as a kind of `innerloop.storage.kinds` reads it."""
    return kind(json.loads(read_bytes(path).decode()))


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> Path:
    """Write a file so that a reader, or a run after a kill, finds all of it or nothing.

    The file is written under an unpredictable name and then moved into place. A link at `path` is
    replaced, and the file that it points to is not changed.

    Args:
        path: The file. Its folder has to exist.
        write: Writes to the open file.

    Returns:
        `path`.

    Raises:
        OSError: If the file cannot be written.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with plain_file(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL) as file:
            write(file)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write text as a whole; see `write_whole`."""
    return write_whole(path, lambda file: file.write(text.encode()))


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


@contextlib.contextmanager
def reading(
    problem: str,
    path: str | os.PathLike[str],
    *,
    expected: str,
    write: str | None = None,
    kind: type[InnerloopError] = RunError,
) -> Iterator[None]:
    """A context that turns any error in reading or decoding a file into a library error.

    The content of a file is checked where it is read. A decoder of another library may still raise
    anything on a damaged file, even `MemoryError`, so no list of exceptions would be complete.

    Args:
        problem: The problem, for the error.
        path: The file.
        expected: The expected content, for the error.
        write: The cure, for the error, if there is one.
        kind: The class of the error.
    """
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise kind(problem, got=f"{path}: {reason}", expected=expected, write=write) from error


def require_text_name(path: str | os.PathLike[str]) -> None:
    """Raise `RunError` if the path is not UTF-8, which JSON, HTML and Orbax need."""
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise RunError(
            "the name of this folder is not UTF-8",
            got=ascii(name),
            expected="a folder whose name, and the names of those above it, are UTF-8",
        ) from error


def _reason(error: Exception) -> str:
    """The reason on one line: Orbax's storage layer names many files, and the reason last."""
    strerror = getattr(error, "strerror", None)
    return strerror or " ".join(str(error).split()).rsplit(": ", 1)[-1].split(" [", 1)[0]


def read_json_lines(path: Path, kind: Callable[[Any], Any]) -> list[Any]:
    """The records of a log, or none if there is no file.

    Lines that a kill cut short, or that are no objects, are left out.

    Raises:
        OSError: If the file cannot be read, or is not a plain file.
        ValueError: If a record is not of this kind.
    """
    records = []
    with contextlib.suppress(FileNotFoundError):
        for number, line in enumerate(read_bytes(path).splitlines(), 1):
            try:  # A damaged line may not be text, or may be nested too deeply.
                content = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if type(content) is not dict:
                continue
            try:
                records.append(kind(content))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    return records


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
