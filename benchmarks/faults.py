"""Do to a run of the digits experiment what machines do, resume it, compare the bits.

`python benchmarks/faults.py [NAME ...]` writes `results/faults.json` and prints the table of
docs/long-runs.md; with names, only those faults are done again. It needs root on Linux: full disks
are real ones, of a small tmpfs.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from innerloop.training.run_folder import environment

FILE = Path(__file__).parent / "results" / "faults.json"
# Root, but for its right to write where the mode of a file does not let it.
MODES_OBEYED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
COMMAND = [
    *(sys.executable, "-m", "innerloop", "train", "digits", "--steps", "120", "--batch", "2"),
    *("--filters", "4", "--per-call", "4", "--save-every", "16", "--validate-every", "40"),
    *("--validation-tasks", "1000", "--test-tasks", "1000"),
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
        self._do("umount")

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
        time.sleep(0.3)
        assert self.logged() == 76, "it had been validated"
        return self

    def saving(self) -> "Run":
        unfinished = lambda: any(self.checkpoints.glob("*tmp*"))
        return self.until(lambda: self.saved() >= 32 and unfinished())

    def testing(self) -> "Run":
        return self.until(lambda: self.saved() == 120)

    def drawing(self) -> "Run":
        return self.until((self.folder / "result.json").exists)

    def signal(self, *numbers: int) -> "Run":
        for number in numbers:
            self._process.send_signal(number)
            time.sleep(0.2)
        return self

    def ended(self) -> tuple[int, list[str]]:
        """Exit status, as a shell gives it, and the lines that were printed on standard error."""
        if self._errors is None:
            _, self._errors = self._process.communicate()
        code, names = self._process.returncode, (str(self.folder), "RUN")
        return code if code >= 0 else 128 - code, self._errors.replace(*names).splitlines()


# --- the faults: each does its own, and returns the run whose end is looked at -------------------


def signalled(moment: Callable[[Run], Run], *numbers: int, warm: bool = True):
    def strike(disk: Disk) -> Run:
        run = Run(disk.run, cache=None if warm else disk.cache)
        return moment(run).signal(*numbers)

    return strike


def full(moment: Callable[[Run], Run]):
    def strike(disk: Disk) -> Run:
        run = moment(Run(disk.run))
        disk.fill()
        return run

    return strike


def read_only_disk(disk: Disk) -> Run:
    disk.read_only()
    return Run(disk.run)


def read_only_folder(disk: Disk) -> Run:
    run = Run(disk.run, prefix=MODES_OBEYED).training()
    for path in (disk.run, *disk.run.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    return run


def deleted_folder(disk: Disk) -> Run:
    run = Run(disk.run).training()
    while disk.run.exists():
        shutil.rmtree(disk.run, ignore_errors=True)
    return run


def killed(disk: Disk) -> Run:
    run = Run(disk.run).training().signal(signal.SIGKILL)
    run.ended()
    return run


def last_checkpoint_damaged(disk: Disk) -> Run:
    run = killed(disk)
    run.damage_checkpoint()
    return run


def checkpoints_damaged(disk: Disk) -> Run:
    run = killed(disk)
    while run.saved():
        run.damage_checkpoint()
    return run.again()


def config_damaged(disk: Disk) -> Run:
    run = killed(disk)
    os.truncate(run.folder / "config.json", 100)
    return run.again()


def second_process(disk: Disk) -> Run:
    first = Run(disk.run).training()
    second = first.again()
    second.ended()
    first.ended()
    return second


FAULTS = {
    "SIGTERM while it compiles": signalled(Run.compiling, signal.SIGTERM, warm=False),
    "Ctrl-C while it compiles": signalled(Run.compiling, signal.SIGINT, warm=False),
    "SIGTERM while it validates": signalled(Run.validating, signal.SIGTERM),
    "Ctrl-C while it validates": signalled(Run.validating, signal.SIGINT),
    "SIGTERM while it saves": signalled(Run.saving, signal.SIGTERM),
    "Ctrl-C while it saves": signalled(Run.saving, signal.SIGINT),
    "SIGTERM while it is tested": signalled(Run.testing, signal.SIGTERM),
    "a second SIGTERM while it compiles": signalled(
        Run.compiling, signal.SIGTERM, signal.SIGTERM, warm=False
    ),
    "a second Ctrl-C while it validates": signalled(Run.validating, signal.SIGINT, signal.SIGINT),
    "SIGKILL while it trains": signalled(Run.training, signal.SIGKILL),
    "SIGKILL while it saves": signalled(Run.saving, signal.SIGKILL),
    "the disk is full while it trains": full(Run.training),
    "the disk is full while it validates": full(Run.validating),
    "the disk is full while it saves": full(Run.saving),
    "the disk is full while it is tested": full(Run.testing),
    "the disk is full while it draws": full(Run.drawing),
    "the disk is read-only": read_only_disk,
    "the folder becomes read-only": read_only_folder,
    "the folder is deleted": deleted_folder,
    "the last checkpoint is damaged": last_checkpoint_damaged,
    "every checkpoint is damaged": checkpoints_damaged,
    "config.json is damaged": config_damaged,
    "a second process": second_process,
}


MENDED_BY = {
    "every checkpoint is damaged": lambda disk: shutil.rmtree(disk.run / "checkpoints"),
    "config.json is damaged": lambda disk: (disk.run / "config.json").unlink(),
}
"""What the message asks for, beside a disk that can be written."""


def same(one: Path, other: Path) -> bool:
    """The best meta-parameters, the test metrics and the loss of every step, bit for bit."""

    def content(run: Path) -> tuple:
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        losses = [loss for line in lines for loss in line["losses"]]
        test = json.loads((run / "result.json").read_text())["test"]
        return (run / "best.eqx").read_bytes(), test, losses

    return content(one) == content(other)


def tried(name: str, whole: Path) -> dict:
    """Do it, mend the disk, resume, compare."""
    with tempfile.TemporaryDirectory() as folder:
        disk = Disk(Path(folder))
        try:
            run = FAULTS[name](disk)
            status, printed = run.ended()
            reached, saved = max(run.reached, run.logged()), run.saved()
            disk.mend()
            MENDED_BY.get(name, lambda disk: None)(disk)
            resumed = Run(disk.run, "--resume")
            resumed_status, resumed_printed = resumed.ended()
            return {
                "what": name,
                "exit_status": status,
                "printed": printed,
                "step_reached": reached,
                "step_saved": saved,
                "lost": max(reached - saved, 0),
                "resumed_exit_status": resumed_status,
                "resumed_printed": resumed_printed,
                "same_bits": resumed_status == 0 and same(disk.run, whole),
            }
        finally:
            disk.remove()


def main() -> None:
    record = json.loads(FILE.read_text()) if FILE.exists() else {"faults": []}
    rows = {row["what"]: row for row in record["faults"]}
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        assert Run(whole).ended() == (0, [])
        for name in sys.argv[1:] or FAULTS:
            rows[name] = tried(name, whole)
            print(json.dumps(rows[name], indent=1), flush=True)
    record = {
        "faults": [rows[name] for name in FAULTS if name in rows],
        "command": " ".join(["innerloop", *COMMAND[3:]]),
        "environment": environment(),
    }
    FILE.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
