"""Processed arrays kept on disk, so that the second start is fast."""

import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from innerloop.storage.files import write_whole
from innerloop.tasks.known_files import cache_folder

_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def cached_array(name: str, build: Callable[[], np.ndarray]) -> np.ndarray:
    """The array `name` from the cache folder, or the result of `build()`, which is then cached.

    `name` must encode everything that the array depends on. If the file cannot be read, the array
    is built again; if the folder cannot be written, it is built on every start.
    """
    path = cache_folder() / f"{name}.npz"
    # opened here, as numpy leaves a file open when it turns out to be no archive
    with suppress(*_UNREADABLE), path.open("rb") as content, np.load(content) as arrays:
        return arrays["array"]
    array = build()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda temporary: np.savez(temporary, array=array))
    return array
