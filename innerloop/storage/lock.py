"""A lock, so that only one process writes to a folder."""

import fcntl
import os
from pathlib import Path
from typing import TextIO

from innerloop.devices.processes import is_first
from innerloop.errors import RunError


def locked(path: Path) -> TextIO | None:
    """A lock on a folder, until it is closed or the process ends, however that ends.

    Of several processes that train together the first holds it. Raises `RunError` where another
    holds it already.
    """
    if not is_first():
        return None
    file = (path / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
    except BlockingIOError as error:
        file.seek(0)
        owner = file.read().strip()
        file.close()
        raise RunError(
            "another process writes to this run",
            got=f"{path}, written by process {owner}",
            expected="one process per run",
            write="another folder, or wait until the other process has ended",
        ) from error
    return file
