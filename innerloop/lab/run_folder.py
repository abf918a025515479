"""The folder of a run: config, log, best meta-parameters, results. Every file is written whole."""

import contextlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from innerloop.errors import InnerloopError, RunError
from innerloop.storage.files import read_json_lines, strict_json, write_whole, writing
from innerloop.storage.lock import locked

CONFIG, LOG, META, RESULT = "config.json", "log.jsonl", "best.eqx", "result.json"
TEST_TASKS = "test_tasks.npz"


class RunFolder:
    """The folder of one run.

    - `config.json`: the experiment's name and every field of its config
    - `log.jsonl`: one line per call to the device: step, seconds, mean metrics, the loss of each
      outer step, system figures, validation
    - `checkpoints/`: the training state, from which a run is resumed
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
    def begin(
        path: Path, config: dict[str, Any], *, may_change: tuple[str, ...] | None = None
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
        folder = RunFolder(path)
        if os.path.exists(path / CONFIG):  # Unlike Path.exists, False without permission to look.
            folder._refuse_another(config)
            if may_change is None:
                raise RunError(
                    "this folder already holds a run",
                    got=str(path),
                    expected="a folder without a run",
                    write=f"--resume, or --run {path}-2",
                )
            folder._refuse_changes(config, may_change)
        with folder.writing():
            path.mkdir(parents=True, exist_ok=True)
            folder._lock = locked(path)  # Before anything is written: another process may write.
        try:
            folder.write_json(CONFIG, config)  # A resumed run may have changed some settings.
        except BaseException:
            folder.close()
            raise
        return folder

    @staticmethod
    def open(path: Path) -> "RunFolder":
        """Open a run to read it. Raises `RunError` if there is none."""
        if not os.path.exists(path / CONFIG):
            raise RunError(
                "there is no run in this folder",
                got=str(path),
                expected=f"a folder with {CONFIG}, as innerloop train writes it",
            )
        return RunFolder(path)

    def _refuse_another(self, config: dict[str, Any]) -> None:
        theirs = None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            theirs = json.loads((self.path / CONFIG).read_text()).get("experiment")
        if theirs not in (None, config.get("experiment")):
            raise RunError(
                "this folder holds a run of another experiment",
                got=f"{config.get('experiment')} in {self.path}",
                expected=f"{theirs}, or a folder without a run",
            )

    def _refuse_changes(self, config: dict[str, Any], may_change: tuple[str, ...]) -> None:
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

    def close(self) -> None:
        """Let other processes write to the folder."""
        if self._lock is not None:
            self._lock.close()

    def require_writable(self) -> None:
        """Raise `RunError` now if `write_json` would raise it later."""
        probe = self._write("probe.tmp", lambda temporary: temporary.write_text("probe\n"))
        probe.unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        """Whether the folder has a file of this name."""
        return (self.path / name).exists()

    def read_json(self, name: str) -> dict[str, Any]:
        """The content of a JSON file such as `config.json`. Raises `RunError` if damaged."""
        with self.reading(name):
            content = json.loads((self.path / name).read_text())
            if not isinstance(content, dict):
                raise ValueError("not an object with names")
            return content

    def read_config(self) -> dict[str, Any]:
        """The experiment's name, and its config by field. Raises `RunError` if damaged."""
        content = self.read_json(CONFIG)
        with self.reading(CONFIG):
            kinds = [type(content.get(name)) for name in ("experiment", "config")]
            if kinds != [str, dict]:
                raise ValueError("no experiment and config")
        return content

    def write_json(self, name: str, content: Any) -> Path:
        """Write a JSON file as a whole."""
        text = strict_json(content, indent=2) + "\n"
        return self._write(name, lambda temporary: temporary.write_text(text))

    def read_log(self) -> list[dict[str, Any]]:
        """The lines of the log, as `read_json_lines`. Raises `RunError` if it cannot be read."""
        with self.reading(LOG):
            return read_json_lines(self.path / LOG)

    def read_arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a file such as `test_tasks.npz`. Raises `RunError` if damaged."""
        with self.reading(name), np.load(self.path / name, allow_pickle=False) as arrays:
            return dict(arrays)

    def write_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> Path:
        """Write named arrays as a whole, compressed."""
        write: Callable[..., Any] = np.savez_compressed
        return self._write(name, lambda temporary: write(temporary, **arrays))

    def save_meta(self, meta: PyTree) -> Path:
        """Write the best meta-parameters."""
        return self._write(META, lambda temporary: eqx.tree_serialise_leaves(temporary, meta))

    def load_meta(self, like: PyTree) -> PyTree:
        """The best meta-parameters, in the structure of `like`. Raises `RunError` if damaged."""
        with self.reading(META):
            return eqx.tree_deserialise_leaves(self.path / META, like)

    def _write(self, name: str, write: Callable[[Path], Any]) -> Path:
        with self.writing():
            return write_whole(self.path / name, write)

    def writing(self) -> AbstractContextManager[None]:
        """A context in which an error of the disk becomes a `RunError`."""
        cure = "the same command again, once there is (innerloop train goes on with --resume), "
        return writing("the run folder", self.path, write=cure + "or --run ANOTHER/FOLDER")

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """A context in which any error of reading or understanding a file becomes a `RunError`."""
        try:
            yield
        except InnerloopError:
            raise
        except Exception as error:  # A damaged file may raise anything.
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise RunError(
                "the run cannot be read",
                got=f"{self.path / name}: {reason}",
                expected="a file as innerloop train wrote it",
                write="innerloop train with this run's flags and --resume, which makes the file "
                "anew" + f" once {CONFIG} is deleted" * (name == CONFIG),
            ) from error


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
