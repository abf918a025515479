"""A lock, which lets only one process write to a folder."""

import fcntl
import os
from pathlib import Path
from typing import TextIO

from innerloop.devices.processes import is_first
from innerloop.errors import RunError


def locked(path: Path) -> TextIO | None:
    """Lock a folder until the lock is closed or the process ends, in whatever way.

    Args:
        path: The folder.

    Returns:
        The lock; None in all but the first of the processes that train together.

    Raises:
        RunError: If another process holds the lock.
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
            expected="one process at a time in a folder",
        ) from error
    return file
