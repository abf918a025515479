"""Files of data sets: found in a folder or downloaded, read, and kept as processed arrays."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from innerloop.checks import optional_package
from innerloop.errors import DataError
from innerloop.storage import files as plain
from innerloop.storage.arrays import read_arrays, write_arrays

Folder = str | os.PathLike[str] | None
"""The folder of the files of a data set; None for the one that `DATA_VARIABLE` names."""

DATA_VARIABLE = "INNERLOOP_DATA"
CACHE_VARIABLE = "INNERLOOP_CACHE"


class KnownFile(NamedTuple):
    """A file with fixed content: its name and its md5."""

    name: str
    md5: str


def data_folder(data: Folder, project: str) -> Path | None:
    """The user's folder with the files of `project`, or None, in which case they are downloaded.

    The folder is `data`, or else the one that the environment variable INNERLOOP_DATA names. If it
    has a subfolder with the name of the project, the result is that subfolder.

    Args:
        data: The folder, if the user named one.
        project: The name of the data set.

    Raises:
        DataError: If the folder does not exist.
    """
    named = os.environ.get(DATA_VARIABLE) if data is None else data
    if not named:
        return None
    folder = Path(named)
    if not folder.is_dir():
        raise DataError(
            "the data folder does not exist",
            got=f"{folder} (from {'data=' if data is not None else DATA_VARIABLE})",
            expected=f"a folder with the {project} files, or with a folder {project}/ of them",
        )
    return folder / project if (folder / project).is_dir() else folder


def needed_folder(data: Folder, project: str, files: str, one_of: Sequence[str]) -> Path:
    """`data_folder` of a project whose files are not downloaded.

    Raises:
        DataError: If no folder is named, it does not exist, or it has none of the files `one_of`.
    """
    folder = data_folder(data, project)
    if folder is None:
        raise DataError(
            f"the files of {project} are not downloaded",
            got=f"no folder: neither data= nor {DATA_VARIABLE}",
            expected=f"a folder with {files}, as data= (--data) or in {DATA_VARIABLE}",
        )
    if not any((folder / name).exists() for name in one_of):
        raise DataError(
            f"the files of {project} are missing",
            got=f"no {' and no '.join(one_of)} in {folder}"
            + f" (from {DATA_VARIABLE})" * (data is None),
            expected=files,
        )
    return folder


def reading(path: Path, expected: str) -> AbstractContextManager[None]:
    """A context in which a file that is missing, or not the `expected` one, raises `DataError`."""
    return plain.reading(
        f"{path.name} cannot be read" if os.path.lexists(path) else f"{path.name} is missing",
        path,
        expected=expected,
        kind=DataError,
    )


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank. Raises `DataError` if there is no such file."""
    with reading(path, "a text file"):
        lines = plain.read_bytes(path).decode().splitlines()
    return [line.strip() for line in lines if line.strip()]


def inside(folder: Path, name: str) -> Path:
    """The file of this name in a folder.

    Raises:
        DataError: If the name, which another file gave, leads out of the folder.
    """
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise DataError(
            "a name leads out of the folder of the data",
            got=f"{name!r} in {folder}",
            expected="the name of a file or folder in it, without / at the beginning or any ..",
        )
    return folder / path


def cache_folder() -> Path:
    """The folder of downloads and processed data: INNERLOOP_CACHE, or the user's own cache."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    pooch = optional_package("pooch", "finding the cache folder", extra="data")
    return Path(pooch.os_cache("innerloop"))


def local_file(choices: Sequence[KnownFile], folder: Path) -> tuple[KnownFile, Path]:
    """The first of several equivalent files that is in `folder`, verified.

    Raises:
        DataError: If none is there, or if its md5 is wrong.
    """
    for file in choices:
        path = folder / file.name
        if os.path.lexists(path):
            with reading(path, f"a file with md5 {file.md5}"):
                md5 = _md5(path)
            if md5 != file.md5:
                raise DataError(
                    f"{path} is corrupt, or another file than its name says",
                    got=f"md5 {md5}",
                    expected=f"md5 {file.md5}",
                )
            return file, path
    names = " or ".join(file.name for file in choices)
    raise DataError(
        f"{names} is missing",
        got=f"no such file in {folder}",
        expected=f"{names} in that folder; without data= and {DATA_VARIABLE} it is downloaded",
    )


def find(
    choices: Sequence[KnownFile], project: str, base_url: str, data: Folder
) -> tuple[KnownFile, AbstractContextManager[Path]]:
    """The file to read, and a context for its path. Entering the context starts a download.

    Args:
        choices: Equivalent files; the first of them is the one to download.
        project: The name of the data set.
        base_url: The address to which the name of the file is added.
        data: The folder of the files, if the user named one; see `data_folder`.
    """
    folder = data_folder(data, project)
    if folder is None:
        return choices[0], downloaded(choices[0], base_url)
    file, path = local_file(choices, folder)
    return file, nullcontext(path)


@contextmanager
def downloaded(file: KnownFile, base_url: str) -> Iterator[Path]:
    """The path of a file from `base_url`, downloaded and verified unless it is in the cache.

    If the cache folder cannot be written, the file exists only inside the context.

    Raises:
        DataError: If the file cannot be downloaded, or its md5 is wrong.
    """
    kept = cache_folder() / file.name
    found = None
    with suppress(OSError):
        found = _md5(kept)
    if found == file.md5:
        yield kept
        return
    with suppress(OSError):
        kept.unlink()  # It is damaged, or it is a pipe at which the download would wait.
    cache = kept.parent
    with nullcontext(cache) if _is_writable(cache) else tempfile.TemporaryDirectory() as folder:
        yield _download(file, base_url, Path(folder))


def _download(file: KnownFile, base_url: str, folder: Path) -> Path:
    pooch = optional_package("pooch", "downloading data", extra="data")
    url = base_url + file.name
    try:
        path = pooch.retrieve(url, f"md5:{file.md5}", fname=file.name, path=folder)
    except (OSError, ValueError) as error:  # no network, refused, disk full; or another checksum
        raise DataError(
            f"{file.name} could not be downloaded",
            got=f"{type(error).__name__}: {error}",
            expected=f"{url} with md5 {file.md5}, or {file.name} in a folder that "
            f"{DATA_VARIABLE} names",
        ) from error
    return Path(path)


def _is_writable(folder: Path) -> bool:
    """Tries to write: permissions do not show read-only file systems and do not bind root."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


_LARGEST = 2**35
"""Bytes. No data set here has a larger file, and a sparse file may claim terabytes."""


def _md5(path: Path) -> str:
    with plain.plain_file(path) as content:
        size = os.fstat(content.fileno()).st_size
        if size > _LARGEST:
            raise OSError(errno.EFBIG, f"{size:,} bytes, more than {_LARGEST:,}", str(path))
        return hashlib.file_digest(content, "md5").hexdigest()  # pyright: ignore[reportArgumentType]


def cached_array(
    name: str, build: Callable[[], np.ndarray], shape: tuple[int | None, ...]
) -> np.ndarray:
    """The images `name` from the cache folder, or the result of `build()`, which is then cached.

    If the file cannot be read or holds anything but these images, the array is built again; if the
    folder cannot be written, it is built on every start.

    Args:
        name: A name that encodes everything that the array depends on. The file also holds the
            name, so a file that was moved to another name is not used.
        build: Makes the array, whose dtype is uint8.
        shape: The shape of the array; None for an axis of any length.
    """
    path = cache_folder() / f"{name}.npz"
    with suppress(Exception), plain.plain_file(path) as content:
        array = read_arrays(content)[name]
        lengths = zip(array.shape, shape, strict=True)
        if array.dtype == np.uint8 and all(wanted in (None, found) for found, wanted in lengths):
            return array
    array = build()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        plain.write_whole(path, lambda file: write_arrays(file, {name: array}))
    return array
