"""The folder of a run: config, log, best meta-parameters, results. Every file is written whole."""

import contextlib
import json
import os
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np
from jaxtyping import PyTree

from innerloop.errors import RunError
from innerloop.logging.records import LINE
from innerloop.storage.arrays import read_arrays, write_arrays
from innerloop.storage.files import (
    plain_file,
    read_bytes,
    read_json,
    read_json_lines,
    reading,
    require_text_name,
    strict_json,
    write_whole,
    writing,
)
from innerloop.storage.kinds import Kind, anything, by_name, count, fields, or_null, text
from innerloop.storage.lock import Lock, locked
from innerloop.storage.meta_file import read_sealed, sealed

CONFIG, LOG, META, RESULT = "config.json", "log.jsonl", "best.eqx", "result.json"
TEST_TASKS, CHECKPOINTS = "test_tasks.npz", "checkpoints"
OWN = "own"
"""The name of the experiment in the folder of a run that is none of the library's."""

SETTINGS = fields({}, {"seed": count, "batch": or_null(count), "steps": count}, rest=anything)
"""The kind of the settings of a run that a report shows."""

_BEGUN = fields({"experiment": text, "config": by_name(anything)}, rest=anything)


class RunFolder:
    """The folder of one run.

    - `config.json`: the experiment's name and every field of its config
    - `log.jsonl`: one line per call to the device: step, seconds, mean metrics, the loss of each
      outer step, system figures, validation
    - `checkpoints/`: the training state, from which a run is resumed
    - `best.eqx`: the best meta-parameters by validation, as Equinox writes leaves, and a checksum
    - `result.json`: the test evaluation with config, seed, versions, device and cost
    - `test_tasks.npz`: every metric of every test task, `(tasks, inner steps + 1)`
    - `calibration.json`: temperature and threshold of a run of `innerloop train images`
    - `*.png`: figures
    - `lock`: held by the process that trains
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock: Lock | None = None
        self._new = False
        self._made: list[Path] = []

    @staticmethod
    def begin(
        path: Path, config: dict[str, Any], *, may_change: Sequence[str] | None = None
    ) -> "RunFolder":
        """Start a run, or resume one. The run holds the folder until it is closed.

        Args:
            path: The folder.
            config: The name of the experiment, and its settings under `"config"`.
            may_change: The settings that a resumed run may change; None to refuse a folder that
                holds a run.

        Raises:
            RunError: If the folder is unwritable, holds a run that is not to be resumed, or one of
                another experiment or of other settings, or if another process writes to it.
        """
        require_text_name(path)
        folder, begun = RunFolder(path), os.path.lexists(path / CONFIG)
        if begun:
            folder._refuse_another(config)
        held = folder.held()
        if held and may_change is None:
            raise RunError(
                "this folder already holds a run",
                got=f"{path}, with {held[0]}",
                expected="a folder without a run",
                write=f"--resume, or --run {path}-2",
            )
        if begun:
            folder._refuse_changes(config, may_change or ())
        elif held:
            warnings.warn(
                f"{path} holds a run without its {CONFIG}. The file is written again from the "
                "settings of this command, which may differ from those that the run began with",
                stacklevel=2,
            )
        with folder.writing():
            folder._new = not held
            folder._made = [each for each in (path, *path.parents) if not os.path.lexists(each)]
            path.mkdir(parents=True, exist_ok=True)
            folder._lock = locked(path)  # Before anything is written: another process may write.
        try:
            folder.write_json(CONFIG, config)  # A resumed run may have changed some settings.
        except BaseException:
            folder.discard()
            folder.close()
            raise
        return folder

    @staticmethod
    def open(path: Path) -> "RunFolder":
        """Open a run to read it. Raises `RunError` if there is none."""
        require_text_name(path)
        if not os.path.lexists(path / CONFIG):
            below = ", ".join(str(each.parent) for each in sorted(path.glob(f"*/{CONFIG}")))
            raise RunError(
                "there is no run in this folder",
                got=str(path),
                expected=f"a folder with {CONFIG}, as innerloop train writes it"
                + f"; the runs in its folders are {below}" * bool(below),
            )
        return RunFolder(path)

    def _refuse_another(self, config: dict[str, Any]) -> None:
        theirs = self.read_config()["experiment"]
        if theirs != config.get("experiment"):
            raise RunError(
                "this folder holds a run of another experiment",
                got=f"{config.get('experiment')} in {self.path}",
                expected=f"{theirs}, or a folder without a run",
            )

    def _refuse_changes(self, config: dict[str, Any], may_change: Sequence[str]) -> None:
        before = self.read_config()["config"]
        changed = {
            name: value
            for name, value in json.loads(strict_json(config))["config"].items()
            if name not in may_change and before.get(name) != value
        }
        if changed:
            schedule = "; --steps too, where the outer rate does not fall (--no-cosine)"
            raise RunError(
                "a run goes on with the settings that it began with",
                got=" ".join(as_flag(name, value) for name, value in changed.items()),
                expected=" ".join(as_flag(name, before.get(name)) for name in changed)
                + "; these may change without harm: "
                + ", ".join(f"--{name.replace('_', '-')}" for name in may_change)
                + schedule * ("steps" in changed),
            )

    def held(self) -> list[str]:
        """The files of a run that the folder has."""
        return [name for name in (CONFIG, LOG, META, RESULT, CHECKPOINTS) if self.has(name)]

    def close(self) -> None:
        """Let other processes write to the folder."""
        if self._lock is not None:
            self._lock.close()

    def discard(self) -> None:
        """Remove what `begin` made if the run took no step; keep a folder that existed before."""
        checkpoints = self.path / CHECKPOINTS
        saved = [each.name for each in checkpoints.iterdir()] if checkpoints.is_dir() else []
        if not self._new or self.has(LOG) or set(saved) - {"lock"}:
            return
        for file in (CONFIG, f"{CHECKPOINTS}/lock", "lock"):
            with contextlib.suppress(OSError):
                (self.path / file).unlink()
        for folder in (checkpoints, *self._made):
            with contextlib.suppress(OSError):
                folder.rmdir()  # Only an empty one can be removed.

    def require_writable(self) -> None:
        """Raise `RunError` now if `write_json` would raise it later."""
        probe = self._write("probe.tmp", lambda file: file.write(b"probe\n"))
        probe.unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        """Whether the folder has a file of this name."""
        return os.path.lexists(self.path / name)

    def read_bytes(self, name: str) -> bytes:
        """The content of a file. Raises `RunError` if it cannot be read."""
        with self.reading(name):
            return read_bytes(self.path / name)

    def read_json(self, name: str, kind: Kind = by_name(anything)) -> Any:
        """A JSON file such as `config.json`, as a kind of `storage.kinds`.

        Raises:
            RunError: If it cannot be read, or is not of this kind.
        """
        with self.reading(name):
            return read_json(self.path / name, kind)

    def read_config(self) -> dict[str, Any]:
        """The experiment's name, and its config by field. Raises `RunError` if damaged."""
        return self.read_json(CONFIG, _BEGUN)

    def write_json(self, name: str, content: Any) -> Path:
        """Write a JSON file as a whole."""
        text = strict_json(content, indent=2) + "\n"
        return self._write(name, lambda file: file.write(text.encode()))

    def read_log(self) -> list[dict[str, Any]]:
        """The lines of the log, as `read_json_lines`. Raises `RunError` if it cannot be read."""
        with self.reading(LOG):
            return read_json_lines(self.path / LOG, LINE)

    def read_arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a file such as `test_tasks.npz`. Raises `RunError` if damaged."""
        with self.reading(name), plain_file(self.path / name) as file:
            return read_arrays(file)

    def write_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> Path:
        """Write named arrays as a whole."""
        return self._write(name, lambda file: write_arrays(file, arrays))

    def save_meta(self, meta: PyTree) -> Path:
        """Write the best meta-parameters, as `innerloop.training.save_meta`."""
        content = sealed(meta)
        return self._write(META, lambda file: file.write(content))

    def load_meta(self, like: PyTree) -> PyTree:
        """The best meta-parameters, in the structure of `like`.

        Raises:
            RunError: If the file is damaged, or its names, shapes or dtypes are not those of
                `like`.
        """
        return read_sealed(self.path / META, like, partial(self.reading, META))

    def _write(self, name: str, write: Callable[[BinaryIO], Any]) -> Path:
        with self.writing():
            return write_whole(self.path / name, write)

    def writing(self) -> AbstractContextManager[None]:
        """A context in which an error of the disk becomes a `RunError`."""
        cure = "the same command again, once there is (innerloop train goes on with --resume), "
        return writing("the run folder", self.path, write=cure + "or --run ANOTHER/FOLDER")

    def reading(self, name: str) -> AbstractContextManager[None]:
        """A context in which any error of reading or understanding a file becomes a `RunError`."""
        return reading(
            "the run cannot be read",
            self.path / name,
            expected="a file as innerloop train wrote it",
            write="innerloop train with this run's flags and --resume, which makes the file anew"
            + f" once {CONFIG} is deleted" * (name == CONFIG),
        )


def as_flag(name: str, value: Any) -> str:
    """A setting as it is written on the command line."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    words = value if isinstance(value, tuple | list) else [value]
    return f"--{flag} {' '.join(map(str, words))}"


def environment() -> dict[str, Any]:
    """What a result depends on besides its config: versions, device, machine."""
    device = jax.devices()[0]
    packages = ("innerloop", "jax", "jaxlib", "equinox", "optax", "numpy")
    return {
        "versions": {package: version(package) for package in packages},
        "python": platform.python_version(),
        "device": f"{device.platform}: {device.device_kind}",
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
    }
