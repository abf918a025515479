"""SIGKILL a run of the digits experiment at random moments, resume it each time, compare the bits.

`python benchmarks/kills.py [KILLS]` writes `results/kills.json`. It goes on until so many SIGKILLs
have ended a living process: a run that came to its end first is not counted.
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from innerloop.lab.run_folder import environment

KILLS = int(sys.argv[1]) if len(sys.argv) > 1 else 50
SAVE_EVERY = 20
COMMAND = [
    *(sys.executable, "-m", "innerloop", "train", "digits"),
    *("--steps", str(200 * KILLS)),
    *("--per-call", "10", "--save-every", str(SAVE_EVERY), "--validate-every", "100"),
]


def start(run: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, "--run", str(run), "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def step_of(run: Path) -> int:
    names = (path.name for path in (run / "checkpoints").glob("[0-9]*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def killed_once(run: Path) -> dict:
    """Start or resume, and kill: one time in four while it starts, or else while it trains."""
    begin, before = time.perf_counter(), step_of(run)
    process = start(run)
    starting = random.random() < 0.25
    if starting:
        wait = random.uniform(0, 8)
    else:
        while process.poll() is None and step_of(run) == before:
            time.sleep(0.01)
        wait = random.uniform(0, 2)
    try:
        process.wait(wait)
    except subprocess.TimeoutExpired:
        process.kill()
    _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors.decode()
    return {
        "while": "starting" if starting else "training",
        "seconds": round(time.perf_counter() - begin, 2),
        "from_step": before,
        "saved_step": step_of(run),
        "killed": process.returncode == -signal.SIGKILL,
    }


def main() -> None:
    random.seed(0)
    folder = Path(tempfile.mkdtemp())
    whole, killed = folder / "whole", folder / "killed"
    begin = time.perf_counter()
    assert start(whole).wait() == 0
    seconds = time.perf_counter() - begin
    kills = []
    while sum(kill["killed"] for kill in kills) < KILLS:
        kills.append(killed_once(killed))
        print(len(kills), kills[-1], flush=True)
    final = start(killed)
    _, errors = final.communicate()
    assert final.returncode == 0, errors.decode()
    results = [json.loads((run / "result.json").read_text()) for run in (whole, killed)]
    record = {
        "kills": kills,
        "sigkills": sum(kill["killed"] for kill in kills),
        "same_parameters": (whole / "best.eqx").read_bytes() == (killed / "best.eqx").read_bytes(),
        "same_metrics": results[0]["test"] == results[1]["test"],
        "save_every": SAVE_EVERY,
        "seconds_undisturbed": round(seconds, 1),
        "command": " ".join(["innerloop", *COMMAND[3:]]),
        "environment": environment(),
    }
    path = Path(__file__).parent / "results" / "kills.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print({name: value for name, value in record.items() if name != "kills"})


if __name__ == "__main__":
    main()
