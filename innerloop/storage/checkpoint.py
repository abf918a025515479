"""Checkpoints of the whole training state, saved in the background and atomically."""

import json
import stat
import warnings
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, PyTree

from innerloop.arguments import at_least, checked, path
from innerloop.checks import describe, first_of, optional_package
from innerloop.devices.processes import in_any, same_in_all, together
from innerloop.errors import RunError
from innerloop.storage.files import require_text_name, writing
from innerloop.storage.kinds import amount, anything, by_name, count, fields, listed, or_null, text
from innerloop.storage.lock import locked
from innerloop.storage.packing import checksums, pack, stored_arrays, unpack
from innerloop.trees import is_key, key_numbers, leaf_names, leaf_shapes

FORMAT = 4
"""The number of the format in which checkpoints are written. No other format is read."""

_FILE_AT_MOST = 2**28
"""The largest size, in bytes, of a file of a checkpoint that holds no arrays."""


def _score(value: Any) -> float:
    return float(text(value))


_ABOUT = fields(
    {
        "settings": by_name(anything),
        "leaves": listed(listed(text)),
        "packed": listed(text),
        "checksums": by_name(count),
        "record": fields(
            {"best_step": or_null(count), "score": _score, "seconds": amount}, rest=anything
        ),
    },
    rest=anything,
)
"""The kind of a checkpoint's description of itself."""


@checked(folder=path(), every=at_least(1, such_as=500), keep=at_least(1, such_as=3))
class Checkpoints(NamedTuple):
    """Where the training state is saved, and how often (needs innerloop[checkpoints]).

    Args:
        folder: The folder of one run, which is made if it does not exist.
        every: Outer steps between two saves, which is also the most that a kill can lose.
        keep: The number of checkpoints that are kept. Each holds the best meta-parameters so far.

    Raises:
        StructureError: If `every` or `keep` is below 1.
    """

    folder: Path
    every: int = 500
    keep: int = 3


class CheckpointFolder:
    """The checkpoints of one run, written by one process at a time.

    Args:
        checkpoints: Where and how often to save.
        settings: The settings that a resumed run must share with the run that was interrupted.

    Attributes:
        every: Outer steps between two saves.

    Raises:
        RunError: If the folder cannot be written, or another process writes to it.
    """

    def __init__(self, checkpoints: Checkpoints, settings: dict[str, Any]):
        self._path = Path(checkpoints.folder).absolute()
        self.every = checkpoints.every
        self._settings = json.loads(json.dumps(settings))
        # Imported here: it takes a second, and a run without checkpoints does not need it.
        ocp = optional_package("orbax.checkpoint", "saving checkpoints", extra="checkpoints")
        self._ocp = ocp
        require_text_name(self._path)
        self._lock = None
        options = {"max_to_keep": checkpoints.keep, "cleanup_tmp_directories": True}
        try:
            with together(), self._writing():
                self._path.mkdir(parents=True, exist_ok=True)
                self._lock = locked(self._path)
                _require_plain(self._path)
            with self._writing():
                self._manager = ocp.CheckpointManager(
                    self._path, options=ocp.CheckpointManagerOptions(**options)
                )
        except BaseException:
            self._unlock()
            raise

    def require_none(self) -> None:
        """Raise `RunError` if the folder has checkpoints of an earlier run."""
        steps = self._manager.all_steps()
        if steps:
            raise RunError(
                "these checkpoints belong to an earlier run",
                got=f"{self._path}, saved at outer step {max(steps)}",
                expected="a folder without checkpoints, or resume=True",
                write="fit(..., resume=True), or Checkpoints(another_folder)",
            )

    def save(self, step: int, state: PyTree, record: dict[str, Any]) -> None:
        """Save in the background. An earlier checkpoint of the same step is kept."""
        if step in self._manager.all_steps():
            return
        with together():
            self._require_there()
        arrays, packed = pack(_named_leaves(state))
        about = {"format": FORMAT, "settings": self._settings, "leaves": _shapes(state)}
        about |= {"packed": packed, "checksums": checksums(arrays), "record": record}
        about["checksum"] = _checksum(about)
        args = self._ocp.args
        items = args.Composite(state=args.StandardSave(arrays), about=args.JsonSave(about))
        with self._writing():
            self._manager.save(step, args=items)

    def load(
        self, like: Callable[[int, dict[str, Any]], PyTree]
    ) -> tuple[PyTree, dict[str, Any]] | None:
        """The last state that can be read, and its record; None if nothing was saved.

        A checkpoint that cannot be read is skipped with a warning. It is deleted once an earlier
        one has been read, because the run will save that step again.

        Args:
            like: `(step, record) -> state`, a state of the structure that is expected at an outer
                step, with the record that was saved there.

        Raises:
            RunError: If the checkpoints have another format, other settings or a state of another
                structure, or none of them can be read; then nothing is deleted.
        """
        damaged, steps = [], sorted(self._manager.all_steps(), reverse=True)
        if not same_in_all(max(steps, default=-1)):
            raise RunError(
                "the processes do not see the same checkpoints",
                got=f"{self._path}, with outer steps {steps} in process {jax.process_index()}",
                expected="one folder that all of them read and write",
            )
        for step in steps:
            about = self._about(step)
            missing = in_any(about is None)  # Every process asks, whatever it found.
            if about is not None and not missing:
                self._require_settings(about)
                expected = like(step, about["record"])
                self._require_leaves(about, expected)
                state = self._state(step, expected, about)
                if not in_any(state is None):
                    with self._writing():
                        for later in damaged:
                            self._manager.delete(later)
                    return state, about["record"]
            damaged.append(step)
            warnings.warn(
                f"the checkpoint at outer step {step} cannot be read; the one before is taken",
                stacklevel=3,
            )
        if damaged:
            raise RunError(
                "no checkpoint of this run can be read",
                got=f"{self._path}: {len(damaged)} damaged",
                expected="at least one whole checkpoint; without this folder, a run with "
                "resume=True begins anew",
            )
        return None

    def close(self) -> None:
        """Wait until the last save is complete, and unlock the folder."""
        try:
            with self._writing():
                self._manager.wait_until_finished()
        finally:
            with suppress(Exception):  # The same error was raised above.
                self._manager.close()
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def _item(self, step: int, name: str, wanted: Any) -> Any:
        """One item of a checkpoint, or None if it cannot be read."""
        try:
            args = self._ocp.args.Composite(**{name: wanted})
            return self._manager.restore(step, args=args)[name]
        except Exception:  # Orbax promises no kind for damage, and raises bare exceptions too.
            return None

    def _about(self, step: int) -> dict[str, Any] | None:
        """A checkpoint's description of itself, or None if it is damaged."""
        about = self._item(step, "about", self._ocp.args.JsonRestore())
        if not isinstance(about, dict) or not isinstance(about.get("format"), int):
            return None
        if about["format"] != FORMAT:
            return about
        if about.pop("checksum", None) != _checksum(about):
            return None
        try:
            return _ABOUT(about)
        except ValueError:
            return None

    def _state(self, step: int, like: PyTree, about: dict[str, Any]) -> PyTree | None:
        leaves, packed = _named_leaves(like), about["packed"]
        wanted = self._ocp.args.StandardRestore(stored_arrays(leaves, packed))
        arrays = self._item(step, "state", wanted)
        if arrays is None:
            return None
        written, read = about["checksums"], checksums(arrays)
        if any(written[name] != read[name] for name in written.keys() & read.keys()):
            return None
        leaves |= unpack(arrays, leaves, packed)
        state = jax.tree.unflatten(jax.tree.structure(like), list(leaves.values()))
        as_key = lambda key, data: jax.random.wrap_key_data(data, impl=jax.random.key_impl(key))
        return jax.tree.map(lambda x, leaf: as_key(x, leaf) if is_key(x) else leaf, like, state)

    def _require_settings(self, about: dict[str, Any]) -> None:
        if about["format"] != FORMAT:
            raise RunError(
                "the checkpoints are of a format that this version does not know",
                got=f"format {about.get('format')}",
                expected=f"format {FORMAT}",
            )
        theirs, mine = about["settings"], self._settings
        changed = sorted(n for n in mine.keys() | theirs.keys() if theirs.get(n) != mine.get(n))
        if changed:
            raise RunError(
                "a run goes on with the settings that it began with",
                got=first_of([f"{name}={mine.get(name)}" for name in changed]),
                expected=first_of([f"{name}={theirs.get(name)}" for name in changed])
                + "; steps, minutes, chunk and per_call may change; others need another folder",
            )

    def _require_leaves(self, about: dict[str, Any], like: PyTree) -> None:
        if about["leaves"] != _shapes(like):
            raise RunError(
                "the checkpoints hold another training state than this run has",
                got=describe(like),
                expected=", ".join(f"{name}: {shape}" for name, shape in about["leaves"]),
            )

    def _require_there(self) -> None:
        """Refuse a deleted folder: Orbax would make it again, without the earlier checkpoints."""
        if self._lock is not None and self._lock.deleted():
            raise RunError(
                "the checkpoints were deleted during the run",
                got=f"{self._path}, without the file that this run has locked",
                expected="a folder that nobody else changes",
                write="fit(..., resume=True) (--resume)",
            )

    def _writing(self) -> AbstractContextManager[None]:
        cure = "the same run with resume=True (--resume), once there is: it goes on from the last "
        cure += "checkpoint. Or Checkpoints(another_folder)"
        # Orbax promises no kind of error: its own storage layer reports a full disk as ValueError.
        return writing("the checkpoints", self._path, write=cure, refusals=(Exception,))


def _require_plain(folder: Path) -> None:
    """Raise `RunError` for files at which Orbax would wait, or links that it would follow.

    Orbax opens everything that it finds in the folder.
    """
    for each in folder.rglob("*"):
        found = each.lstat()
        if stat.S_ISDIR(found.st_mode):
            continue
        arrays = each.parent.name == "d"
        small = arrays or found.st_size <= _FILE_AT_MOST
        if not (stat.S_ISREG(found.st_mode) and small) or (not arrays and _is_deep(each)):
            raise RunError(
                "the checkpoints have a file that no checkpoint has",
                got=f"{each}, which is a link, a pipe, a device, or too large or deep",
                expected="folders and plain files, as a run writes them",
                write="rm THAT_FILE, and the same run with resume=True (--resume)",
            )


def _is_deep(path: Path) -> bool:
    """Whether a file is JSON that is nested too deeply to be read, which Orbax does not expect."""
    try:
        json.loads(path.read_bytes())
    except RecursionError:
        return True
    except ValueError:
        pass
    return False


def _checksum(about: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


def _shapes(state: PyTree) -> list[list[str]]:
    """The names and shapes of the leaves, as JSON gives them back."""
    return [[name, shape] for name, shape in leaf_shapes(state).items()]


def _named_leaves(state: PyTree) -> dict[str, Array]:
    """The leaves by name; random keys as their data, which can be saved."""
    return dict(zip(leaf_names(state), map(key_numbers, jax.tree.leaves(state)), strict=True))
