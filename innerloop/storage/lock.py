"""A lock, which lets only one process write to a folder."""

import fcntl
import os
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from innerloop.devices.processes import is_first
from innerloop.errors import RunError
from innerloop.storage.files import plain_file


class Lock:
    """A lock on a folder, held until it is closed or the process ends, in whatever way.

    Args:
        path: The folder.

    Raises:
        RunError: If another process holds the lock, or its file is a link, a pipe or the like.
        OSError: If the file cannot be made.
    """

    def __init__(self, path: Path):
        file = path / "lock"
        if os.path.lexists(file) and not _is_plain(file):
            raise RunError(
                "the lock of this folder is not a plain file of its own",
                got=f"{file}, which is a link, a folder, a pipe or a device",
                expected="the file that innerloop makes",
                write=f"rm -r {file}",
            )
        with ExitStack() as opened:
            self._file = opened.enter_context(plain_file(file, os.O_RDWR | os.O_CREAT))
            _take(self._file, path)
            self._opened = opened.pop_all()

    def deleted(self) -> bool:
        """Whether the lock file was deleted in the meantime."""
        return os.fstat(self._file.fileno()).st_nlink == 0

    def close(self) -> None:
        """Let other processes lock the folder."""
        self._opened.close()


def _is_plain(file: Path) -> bool:
    found = file.lstat()
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


def locked(path: Path) -> Lock | None:
    """The lock of a folder; None in all but the first of the processes that train together."""
    return Lock(path) if is_first() else None


def _take(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = file.read(20).decode(errors="replace").strip()
        raise RunError(
            "another process writes to this run",
            got=f"{path}, written by process {owner}",
            expected="one process at a time in a folder",
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n".encode())
    file.flush()
