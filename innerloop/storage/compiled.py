"""Compiled programs on disk, each under a checksum: a damaged one is compiled again."""

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

import jax

from innerloop.storage.files import read_bytes, write_whole

_DIGEST = hashlib.sha256().digest_size


class SealedPrograms:
    """The entries of JAX's compilation cache, with checksums.

    JAX itself trusts every entry that it finds. It writes an entry in place and never replaces it.
    If a kill or a disk fault damages an entry, every later process warns and compiles again, and an
    entry that was moved to the name of another one is run. Here an entry is written as a whole,
    together with a checksum of its name and content. An entry whose checksum is wrong counts as
    missing and is replaced.

    Args:
        folder: The folder of the entries.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self._path = Path(folder)

    def get(self, key: str) -> bytes | None:
        """The content of an entry, or None if the entry is missing or damaged."""
        with contextlib.suppress(Exception):
            sealed = read_bytes(self._file(key))
            if sealed[:_DIGEST] == _seal(key, sealed[_DIGEST:]):
                return sealed[_DIGEST:]
        return None

    def put(self, key: str, value: bytes) -> None:
        """Write an entry. If the disk refuses the write, no error is raised."""
        with contextlib.suppress(OSError):
            self._path.mkdir(parents=True, exist_ok=True)
            write_whole(self._file(key), lambda file: file.write(_seal(key, value) + value))

    def _file(self, key: str) -> Path:
        return self._path / f"{key}-sealed"


def _seal(key: str, value: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + value).digest()


def keep_compiled(folder: Path) -> None:
    """Keep compiled programs on disk, so that the second start compiles little.

    This includes those that compile in less than a second, which JAX leaves out: a run has a
    hundred of them. Environment variables of JAX take precedence, also over the folder.
    """
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    for name, value in settings.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    if jax.config.jax_compilation_cache_max_size != -1:  # pyright: ignore[reportAttributeAccessIssue]
        return  # Only JAX's own cache removes old entries.
    # JAX has no public interface for a custom cache. If this fails, JAX uses its own cache.
    with contextlib.suppress(ImportError, AttributeError):
        from jax._src import compilation_cache

        kept: Any = compilation_cache
        if callable(kept.get_file_cache):
            kept.get_file_cache = lambda path: (SealedPrograms(path), path)
