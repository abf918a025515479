"""Trainings of the command line as a benchmark: each in a folder of its own, skipped once it is
finished and gone on with where it was cut off."""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
_SESSIONS = "sessions.json"


class Training(NamedTuple):
    """One run of `innerloop train`: its folder's name, its experiment, its flags by name."""

    name: str
    experiment: str
    flags: dict[str, Any]

    def arguments(self, run: Path | str) -> list[str]:
        """What follows `innerloop`."""
        flags = [word for flag in self.flags.items() for word in _words(*flag)]
        return ["train", self.experiment, *flags, "--run", str(run)]


def _words(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", str(value)]


def main(about: str, groups: dict[str, list[Training]], write: Callable[[Path], None]) -> None:
    """The command line of a benchmark: train what is not finished, or write what is."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the runs are, one folder each")
    parser.add_argument("which", nargs="*", help=f"some of: {', '.join(groups)}; all unless given")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="runs with one of these in name")
    parser.add_argument("--minutes", type=float, help="of each run, in place of its own: a trial")
    parser.add_argument("--cores", type=int, default=1, help="of each run; as many at once as fit")
    parser.add_argument("--write", action="store_true", help="train nothing, write the results")
    options = parser.parse_args()
    if options.write:
        write(options.folder)
        return
    minutes = {} if options.minutes is None else {"minutes": options.minutes}
    trainings = [
        training._replace(flags=training.flags | minutes)
        for which in options.which or groups
        for training in groups[which]
        if not options.only or any(word in training.name for word in options.only)
    ]
    failed = train_all(trainings, options.folder, options.cores)
    if failed:
        sys.exit(f"failed, see output.txt in their folders: {', '.join(failed)}")


def train_all(trainings: Sequence[Training], folder: Path, cores: int) -> list[str]:
    """Train what is not finished, as many at once as there are `cores` for; the names that failed.

    A signal ends the trainings, which save themselves; the same call then goes on with them.
    """
    waiting: queue.SimpleQueue[Training] = queue.SimpleQueue()
    for training in trainings:
        if not (folder / training.name / "result.json").exists():
            waiting.put(training)
    own = sorted(os.sched_getaffinity(0))
    shares = [own[first : first + cores] for first in range(0, len(own) - cores + 1, cores)]
    running, failed = [], []
    workers = [
        threading.Thread(target=_work, args=(waiting, folder, share or own, running, failed))
        for share in shares or [own]
    ]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        while not waiting.empty():
            waiting.get()
        for process in running:
            process.terminate()
        raise SystemExit("stopped; the same command goes on") from None
    return failed


def _work(waiting, folder: Path, cores: Sequence[int], running: list, failed: list) -> None:
    """One thread: its affinity is that of the processes that it starts."""
    os.sched_setaffinity(0, cores)
    while True:
        try:
            training = waiting.get_nowait()
        except queue.Empty:
            return
        run, begin = folder / training.name, time.time()
        run.mkdir(parents=True, exist_ok=True)
        load = os.getloadavg()[0]
        with (run / "output.txt").open("a") as output:
            command = [sys.executable, "-m", "innerloop", *training.arguments(run), "--resume"]
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            running.append(process)
            status = process.wait()
            running.remove(process)
        session = {
            "command": _command(training),
            "cores": len(cores),
            "cores_of_machine": os.cpu_count(),
            "load_at_start": round(load, 2),
            "load_at_end": round(os.getloadavg()[0], 2),
            "minutes": round((time.time() - begin) / 60, 2),
            "exit_status": status,
        }
        (run / _SESSIONS).write_text(json.dumps([*sessions(run), session], indent=1) + "\n")
        print(f"{training.name}: {session}", flush=True)
        if status != 0:
            failed.append(training.name)


def _command(training: Training) -> str:
    return " ".join(["innerloop", *training.arguments(f"runs/{training.name}")])


def sessions(run: Path) -> list[dict[str, Any]]:
    """The processes that trained a run: cores given, load of the machine, minutes, exit status."""
    path = run / _SESSIONS
    return json.loads(path.read_text()) if path.exists() else []


def finished_run(run: Path) -> dict[str, Any]:
    """What a finished run says: its result, its validation curve, what it was trained on and with.

    The run folder's own path stays out, so that the record is the same wherever it was made.
    """
    result = json.loads((run / "result.json").read_text())
    result["config"].pop("run", None)
    lines = [
        json.loads(line, parse_constant=str)
        for line in (run / "log.jsonl").read_text().splitlines()
    ]
    result["minutes_trained"] = round(lines[-1]["seconds"] / 60, 2)
    result["tasks_trained"] = result["outer_steps"] * result["config"]["batch"]
    result["validation_curve"] = [
        {
            "outer_step": line["step"],
            "seconds": line["seconds"],
            **{metric: values[-1] for metric, values in line["validation"]["mean"].items()},
        }
        for line in lines
        if "validation" in line
    ]
    if sessions(run):
        result["sessions"] = sessions(run)
    return result


def finished_runs(
    trainings: Iterable[Training], folder: Path, before: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The records of the trainings that are finished, by name, each with its command.

    What is not in the folder is as `before`, if it came of the same command. A classifier that was
    tested before calibration was measured is tested again.
    """
    records = {}
    for training in trainings:
        run = folder / training.name
        if not (run / "result.json").exists():
            if before.get(training.name, {}).get("command") == _command(training):
                records[training.name] = before[training.name]
            continue
        commands = [each["command"] for each in sessions(run) if "command" in each]
        record = {"command": [_command(training), *commands][-1]} | finished_run(run)
        if not _complete(record):
            steps, config = len(record["test"]["mean"]["loss"]) - 1, record["config"]
            tasks = config["test_tasks"]
            name = f"evaluation-seed{config['seed']}-steps{steps}-tasks{tasks}.json"
            record["test"] = evaluation(run, name)["test"]
        records[training.name] = record
    return records


def evaluation(run: Path, name: str, *arguments: str) -> dict[str, Any]:
    """What `innerloop evaluate` finds, and keeps in a file of the run, whose name may be a pattern.

    It is asked where there is no such file, or none with the calibration of a classifier.
    """
    kept = lambda: [json.loads(path.read_text()) for path in sorted(run.glob(name))]
    if not any(map(_complete, kept())):
        command = [sys.executable, "-m", "innerloop", "evaluate", str(run), *arguments]
        subprocess.run(command, check=True)
    return next(filter(_complete, kept()))


def _complete(record: dict[str, Any]) -> bool:
    """Whether calibration was measured, where there are classes."""
    return "ece" in record["test"] or "accuracy" not in record["test"]["mean"]


def read_json(name: str) -> Any:
    """A file of `benchmarks/results`, or nothing where there is none yet."""
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else {}


def write_json(name: str, content: Any) -> Path:
    """A file of `benchmarks/results`."""
    path = RESULTS / name
    path.write_text(json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    return path


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table of Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def share(mean: float, interval: float) -> str:
    """A fraction and half its interval, in per cent: `98.0 ± 0.3`."""
    return f"{100 * mean:.1f} ± {100 * interval:.1f}"


def conditions(records: Iterable[dict[str, Any]]) -> str:
    """On what the runs were trained, in one sentence."""
    all_sessions = [each for record in records for each in record.get("sessions", [])]
    if not all_sessions:
        return "Cores and load were not recorded."
    given = sorted({each["cores"] for each in all_sessions})
    loads = [each[name] for each in all_sessions for name in ("load_at_start", "load_at_end")]
    machine = max(each["cores_of_machine"] for each in all_sessions)
    return (
        f"Each run had {' or '.join(map(str, given))} of the {machine} cores of a machine that "
        f"other work shared: its load was {min(loads):.1f} to {max(loads):.1f}."
    )
