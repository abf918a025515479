"""A run's folder: config, log, best meta-parameters, results. Files appear whole or not at all."""

import contextlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO
from zipfile import BadZipFile

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from innerloop.errors import RunError
from innerloop.storage.files import read_json_lines, strict_json, write_whole, writing
from innerloop.storage.lock import locked

CONFIG, LOG, META, RESULT = "config.json", "log.jsonl", "best.eqx", "result.json"
CHECKPOINTS, TEST_TASKS = "checkpoints", "test_tasks.npz"
_PACKAGES = ("innerloop", "jax", "jaxlib", "equinox", "optax", "numpy")


class RunFolder:
    """The folder of one run.

    - `config.json`: the experiment's name and every field of its config
    - `log.jsonl`: one line per call to the device: step, seconds, mean metrics, the loss of each
      outer step, system figures, validation
    - `checkpoints/`: the training state, by which a run goes on
    - `best.eqx`: the best meta-parameters by validation
    - `result.json`: the test evaluation with config, seed, versions, device and cost
    - `test_tasks.npz`: every metric of every test task, `(tasks, inner steps + 1)`
    - `*.png`: figures
    - `lock`: held by the process that trains
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock: TextIO | None = None

    @staticmethod
    def create(path: Path, config: dict[str, Any]) -> "RunFolder":
        """Start a run, which holds the folder until it is closed.

        Raises `RunError` where the folder is unwritable, holds a run already, or another process
        writes to it.
        """
        folder = RunFolder(path)
        if os.path.exists(path / CONFIG):  # unlike Path.exists, False where it may not look
            folder._refuse_another(config)
            raise RunError(
                "this folder already holds a run",
                got=str(path),
                expected="a folder without a run",
                write=f"--resume to go on with it, or --run {path}-2 for another",
            )
        folder._begin(config)
        return folder

    @staticmethod
    def resume(path: Path, config: dict[str, Any], *, may_change: tuple[str, ...]) -> "RunFolder":
        """Go on with a run, or start it where there is none.

        Raises `RunError` where the folder holds a run of another experiment, or of a config that
        differs in more than `may_change`.
        """
        if not os.path.exists(path / CONFIG):
            return RunFolder.create(path, config)
        folder = RunFolder(path)
        theirs, mine = folder.read_config(), json.loads(strict_json(config))
        folder._refuse_another(config)
        before = theirs["config"]
        changed = {
            name: (before.get(name), value)
            for name, value in mine["config"].items()
            if name not in may_change and before.get(name) != value
        }
        if changed:
            schedule = "; --steps too, where the outer rate does not fall (--no-cosine)"
            raise RunError(
                "a run goes on with the settings that it began with",
                got=" ".join(_as_flag(name, now) for name, (_, now) in changed.items()),
                expected=" ".join(_as_flag(name, then) for name, (then, _) in changed.items()),
                write="the settings as they were; without harm may change "
                + ", ".join(f"--{name.replace('_', '-')}" for name in may_change)
                + schedule * ("steps" in changed),
            )
        folder._begin(config)  # with what has changed: it is read by others
        return folder

    @staticmethod
    def open(path: Path) -> "RunFolder":
        """Read a run. Raises `RunError` where there is none."""
        if not os.path.exists(path / CONFIG):
            raise RunError(
                "there is no run in this folder",
                got=str(path),
                expected=f"a folder with {CONFIG}, as innerloop train writes it",
                write=f"the folder of a run; innerloop train digits --run {path} begins one",
            )
        return RunFolder(path)

    def _refuse_another(self, config: dict[str, Any]) -> None:
        """Raise `RunError` where the folder holds a run of another experiment."""
        theirs = None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            theirs = json.loads((self.path / CONFIG).read_text()).get("experiment")
        if theirs in (None, config.get("experiment")):
            return
        raise RunError(
            "this folder holds a run of another experiment",
            got=f"{config.get('experiment')} in {self.path}",
            expected=f"{theirs}, or a folder without a run",
            write=f"--run {self.path}-2",
        )

    def _begin(self, config: dict[str, Any]) -> None:
        """Take the folder, and only then write to it: another process may live in it."""
        with self.writing():
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = locked(self.path)
        try:
            self.write_json(CONFIG, config)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let other processes write to the folder."""
        if self._lock is not None:
            self._lock.close()

    def require_writable(self) -> None:
        """Raise `RunError` now where `write_json` would later."""
        probe = self._write("probe.tmp", lambda temporary: temporary.write_text("probe\n"))
        probe.unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        """Whether the run has come to a file."""
        return (self.path / name).exists()

    def read_json(self, name: str) -> dict[str, Any]:
        """The content of a JSON file such as `config.json`. Raises `RunError` where damaged."""
        try:
            content = json.loads((self.path / name).read_text())
            if not isinstance(content, dict):
                raise ValueError("not an object with names")
            return content
        except (OSError, ValueError) as error:
            raise self.damaged(name, error) from error

    def read_config(self) -> dict[str, Any]:
        """The experiment's name, and its config by field. Raises `RunError` where damaged."""
        content = self.read_json(CONFIG)
        if isinstance(content.get("experiment"), str) and isinstance(content.get("config"), dict):
            return content
        raise self.damaged(CONFIG, ValueError("no experiment and config"))

    def write_json(self, name: str, content: Any) -> Path:
        """Write a JSON file whole."""
        text = strict_json(content, indent=2) + "\n"
        return self._write(name, lambda temporary: temporary.write_text(text))

    def read_log(self) -> list[dict[str, Any]]:
        """The lines of the log, as `read_json_lines`. Raises `RunError` where damaged."""
        try:
            return read_json_lines(self.path / LOG)
        except (OSError, ValueError) as error:
            raise self.damaged(LOG, error) from error

    def read_arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a file such as `test_tasks.npz`. Raises `RunError` where damaged."""
        try:
            with np.load(self.path / name, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            raise self.damaged(name, error) from error

    def write_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> Path:
        """Write named arrays whole, compressed."""
        write: Callable[..., Any] = np.savez_compressed
        return self._write(name, lambda temporary: write(temporary, **arrays))

    def save_meta(self, meta: PyTree) -> Path:
        """Keep the best meta-parameters."""
        return self._write(META, lambda temporary: eqx.tree_serialise_leaves(temporary, meta))

    def load_meta(self, like: PyTree) -> PyTree:
        """The best meta-parameters, in the structure of `like`. Raises `RunError` if unreadable."""
        try:
            return eqx.tree_deserialise_leaves(self.path / META, like)
        except (OSError, RuntimeError, ValueError, EOFError) as error:
            raise self.damaged(META, error) from error

    def _write(self, name: str, write: Callable[[Path], Any]) -> Path:
        with self.writing():
            return write_whole(self.path / name, write)

    def writing(self) -> AbstractContextManager[None]:
        """What is written to the folder in here raises `RunError` where the disk refuses."""
        return writing(
            "the run folder",
            self.path,
            write="the same command again, once there is (innerloop train goes on with --resume), "
            "or --run ANOTHER/FOLDER",
        )

    def damaged(self, name: str, error: Exception) -> RunError:
        """The error to raise for a file of the run that cannot be used."""
        return RunError(
            "the run cannot be read",
            got=f"{self.path / name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}",
            expected="a file as innerloop train wrote it",
            write="innerloop train with this run's flags and --resume, which makes the file anew"
            + f" once {CONFIG} is deleted" * (name == CONFIG),
        )


def _as_flag(name: str, value: Any) -> str:
    """A setting as it is written on the command line."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"no --{flag}" if value is None else f"--{flag} {value}"


def environment() -> dict[str, Any]:
    """What a result depends on beside its config: versions, device, machine."""
    device = jax.devices()[0]
    return {
        "versions": {package: version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "device": f"{device.platform}: {device.device_kind}",
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
    }
