"""A run of the digits experiment as a process, and the small disk that it writes to."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

COMMAND = [
    *(sys.executable, "-m", "innerloop", "train", "digits", "--steps", "120", "--batch", "2"),
    *("--filters", "4", "--per-call", "4", "--save-every", "16", "--validate-every", "40"),
    *("--validation-tasks", "1000", "--test-tasks", "40"),
]


class Disk:
    """A small disk of its own, which a run's folder lies on."""

    def __init__(self, path: Path):
        self.path, self.run, self.cache = path / "disk", path / "disk" / "run", path / "cache"
        self.path.mkdir()
        self._do("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs")

    def fill(self) -> None:
        with (self.path / "ballast").open("wb", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(bytes(4096))
            except OSError:
                pass

    def read_only(self) -> None:
        self._do("mount", "-o", "remount,ro")

    def mend(self) -> None:
        self._do("mount", "-o", "remount,rw")
        (self.path / "ballast").unlink(missing_ok=True)
        for path in (self.run, *self.run.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)

    def remove(self) -> None:
        self._do("umount", "--lazy")

    def _do(self, *command: str) -> None:
        subprocess.run([*command, self.path], check=True)


class Run:
    """A process that trains, and what can be seen of it from outside."""

    def __init__(
        self,
        folder: Path,
        *flags: str,
        cache: Path | None = None,
        prefix: tuple[str, ...] = (),
    ):
        self.folder, self.checkpoints = folder, folder / "checkpoints"
        self.reached = 0
        self._damaged: set[str] = set()
        self._errors: str | None = None
        changed = {} if cache is None else {"INNERLOOP_CACHE": str(cache)}
        self._process = subprocess.Popen(
            [*prefix, *COMMAND, *flags, "--run", str(folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | changed,
        )

    def until(self, reached: Callable[[], bool]) -> "Run":
        """Look often; return at the moment when something has been reached."""
        while not reached():
            assert self._process.poll() is None, self.ended()
            time.sleep(0.002)
        self.logged()
        return self

    def again(self) -> "Run":
        """Another process that goes on with the run."""
        other = Run(self.folder, "--resume")
        other.reached, other._damaged = self.reached, self._damaged
        return other

    def logged(self) -> int:
        """The outer step that the log has come to."""
        try:
            line = (self.folder / "log.jsonl").read_text().splitlines()[-1]
            self.reached = max(self.reached, json.loads(line)["step"])
        except (OSError, IndexError, ValueError):
            return 0
        return self.reached

    def saved(self) -> int:
        """The outer step of the last whole checkpoint."""
        found = self.checkpoints.iterdir() if self.checkpoints.exists() else ()
        names = {path.name for path in found if path.name.isdigit()} - self._damaged
        return max(map(int, names), default=0)

    def damage_checkpoint(self) -> None:
        """Cut every file of the last whole one to half its length."""
        name = str(self.saved())
        for path in (self.checkpoints / name).rglob("*"):
            if path.is_file():
                os.truncate(path, path.stat().st_size // 2)
        self._damaged.add(name)

    def compiling(self) -> "Run":
        self.until((self.checkpoints / "lock").exists)
        time.sleep(1.5)
        assert self.logged() == 0, "it had been compiled"
        return self

    def training(self) -> "Run":
        return self.until(lambda: self.logged() >= 52 and self.saved() >= 48)

    def validating(self) -> "Run":
        self.until(lambda: self.logged() >= 76)
        time.sleep(0.2)
        assert self.logged() == 76, "it had been validated"
        return self

    def saving(self) -> "Run":
        unfinished = lambda: any(self.checkpoints.glob("*tmp*"))
        return self.until(lambda: self.saved() >= 32 and unfinished())

    def saved_last(self) -> "Run":
        return self.until(lambda: self.saved() == 120)

    def testing(self) -> "Run":
        self.saved_last()
        time.sleep(0.3)
        assert not (self.folder / "result.json").exists(), "it had been tested"
        return self

    def drawing(self) -> "Run":
        return self.until((self.folder / "result.json").exists)

    def signal(self, *numbers: int) -> "Run":
        for number in numbers:
            self._process.send_signal(number)
            time.sleep(0.05)
        return self

    def ended(self) -> tuple[int, list[str]]:
        """Exit status, as a shell gives it, and the lines that were printed on standard error."""
        if self._errors is None:
            _, self._errors = self._process.communicate()
        code, names = self._process.returncode, (str(self.folder), "RUN")
        return code if code >= 0 else 128 - code, self._errors.replace(*names).splitlines()
