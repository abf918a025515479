"""Do to a run of the digits experiment what machines do, resume it, compare the bits.

`python benchmarks/faults.py [NAME ...]` writes `results/faults.json` and the table of
docs/long-runs.md, to which a test holds the page; with names, only those faults are done again. It
needs root on Linux: full disks are real ones, of a small tmpfs.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from fault_runs import COMMAND, Disk, Run

from innerloop.lab.run_folder import environment

FILE = Path(__file__).parent / "results" / "faults.json"
PAGE = Path(__file__).parents[1] / "docs" / "long-runs.md"
BEGIN, END = "<!-- faults: begin, written by benchmarks/faults.py -->", "<!-- faults: end -->"
# Root, but for its right to write where the mode of a file does not let it.
MODES_OBEYED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


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
    first = Run(disk.run).training().signal(signal.SIGSTOP)  # it lives, and has time
    second = first.again()
    second.ended()
    first.signal(signal.SIGCONT).ended()
    return second


FAULTS = {
    "SIGTERM while it compiles": signalled(Run.compiling, signal.SIGTERM, warm=False),
    "Ctrl-C while it compiles": signalled(Run.compiling, signal.SIGINT, warm=False),
    "SIGTERM while it validates": signalled(Run.validating, signal.SIGTERM),
    "Ctrl-C while it validates": signalled(Run.validating, signal.SIGINT),
    "SIGTERM while it saves": signalled(Run.saving, signal.SIGTERM),
    "Ctrl-C while it saves": signalled(Run.saving, signal.SIGINT),
    "SIGTERM as the last save ends": signalled(Run.saved_last, signal.SIGTERM),
    "SIGTERM while it is tested": signalled(Run.testing, signal.SIGTERM),
    "a second SIGTERM while it compiles": signalled(
        Run.compiling, signal.SIGTERM, signal.SIGTERM, warm=False
    ),
    "SIGKILL while it trains": signalled(Run.training, signal.SIGKILL),
    "SIGKILL while it saves": signalled(Run.saving, signal.SIGKILL),
    "SIGKILL while it is tested": signalled(Run.testing, signal.SIGKILL),
    "the disk is full while it trains": full(Run.training),
    "the disk is full while it validates": full(Run.validating),
    "the disk is full while it saves": full(Run.saving),
    "the disk is full as the last save ends": full(Run.saved_last),
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


def losses(run: Path) -> list[float]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return [loss for line in lines for loss in json.loads(line)["losses"]]


def same(run: Path, whole: Path) -> bool:
    """The best meta-parameters, the test metrics and the logged losses, bit for bit."""

    def content(run: Path) -> tuple:
        return (run / "best.eqx").read_bytes(), json.loads((run / "result.json").read_text())[
            "test"
        ]

    logged = losses(run)
    return content(run) == content(whole) and logged == losses(whole)[-len(logged) :]


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


def table(rows: list[dict]) -> str:
    """What happened, what was printed of it, what was lost, and where it went on to."""
    lines = [
        "| what happens | what is printed | steps lost | exit status | the same bits after all |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        printed = row["printed"] or row["resumed_printed"]
        said = printed[-1].removeprefix("innerloop: ").split(". Got")[0] if printed else "nothing"
        same_bits = "yes" if row["same_bits"] else "no"
        cells = (row["what"], said, row["lost"], row["exit_status"], same_bits)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def updated(text: str) -> str:
    """The page with the table of the results between its markers."""
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n\n{table(json.loads(FILE.read_text())['faults'])}\n\n{END}{tail}"


def main() -> None:
    record = json.loads(FILE.read_text()) if FILE.exists() else {"faults": []}
    rows = {row["what"]: row for row in record["faults"]}
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        assert Run(whole).ended() == (0, [])
        for name in sys.argv[1:] or FAULTS:
            rows[name] = tried(name, whole)
            print(json.dumps(rows[name], indent=1), flush=True)
            write([rows[name] for name in FAULTS if name in rows])


def write(rows: list[dict]) -> None:
    """After each, so that a fault that cannot be done in time costs no other."""
    command = " ".join(["innerloop", *COMMAND[3:]])
    record = {"faults": rows, "command": command, "environment": environment()}
    FILE.write_text(json.dumps(record, indent=1) + "\n")
    PAGE.write_text(updated(PAGE.read_text()))


if __name__ == "__main__":
    main()
