"""How long a run takes to start: the first time, and again with what was compiled before.

`python benchmarks/startup.py [REPETITIONS]` writes `results/startup.json`, anew after each
repetition. Each start is a process of its own, ended after its first outer step; the first of a
pair finds an empty folder for compiled programs. Omniglot is left out without INNERLOOP_DATA.

- `backend_compile_seconds`: what JAX's own events say, up to the first outer step
- `seconds`: from the start of the process to the end of the first outer step
- `processor_seconds`: the same in processor time, which other work on the machine disturbs less
- `import`: processor time of `import innerloop`, and of `import jax, equinox, optax`, which a loop
  written by hand needs
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from innerloop.lab.run_folder import environment

REPETITIONS = int(sys.argv[1]) if len(sys.argv) > 1 else 5
FLAGS = ["--per-call", "1"]
CHILD = """
import sys
import jax

events = open(sys.argv.pop(1), "w", buffering=1)

def listen(name, seconds, **_):
    if name == "/jax/core/compile/backend_compile_duration":
        print(seconds, file=events)

jax.monitoring.register_event_duration_secs_listener(listen)
from innerloop.lab.cli import main

main()
"""
IMPORT = "import time; import {}; print(time.process_time())"
FIRST, SECOND = "first", "second"


def start(experiment: str, folder: Path, cache: Path) -> dict[str, float]:
    """One run, up to its first outer step."""
    folder.mkdir()
    events, log = folder / "events", folder / "log.jsonl"
    command = [*(sys.executable, "-c", CHILD, str(events)), "train", experiment, *FLAGS]
    begin = time.perf_counter()
    with subprocess.Popen(
        [*command, "--run", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"INNERLOOP_CACHE": str(cache)},
    ) as process:
        while not (log.exists() and log.stat().st_size):
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.01)
        seconds = time.perf_counter() - begin
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        process.kill()
        process.communicate()
    ticks = int(fields[11]) + int(fields[12])  # in user and in system mode
    return {
        "backend_compile_seconds": sum(float(line) for line in events.read_text().splitlines()),
        "programs": len(events.read_text().splitlines()),
        "seconds": seconds,
        "processor_seconds": ticks / os.sysconf("SC_CLK_TCK"),
    }


def pair(experiment: str) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        return {run: start(experiment, path / run, path / "cache") for run in (FIRST, SECOND)}


def import_seconds(names: str) -> float:
    return float(subprocess.check_output([sys.executable, "-c", IMPORT.format(names)]))


def medians(pairs: list[dict]) -> dict:
    of = lambda values: round(statistics.median(values), 3)
    return {
        name: {run: of([pair[run][name] for pair in pairs]) for run in (FIRST, SECOND)}
        | {"ratio": of([pair[FIRST][name] / pair[SECOND][name] for pair in pairs])}
        for name in pairs[0][FIRST]
    }


def main() -> None:
    experiments = ["digits", "sinusoid"] + ["omniglot"] * bool(os.environ.get("INNERLOOP_DATA"))
    imports = {"innerloop": [], "jax, equinox, optax": []}
    pairs = {experiment: [] for experiment in experiments}
    for _ in range(REPETITIONS):
        for names, seconds in imports.items():
            seconds.append(import_seconds(names))
        for experiment, found in pairs.items():
            found.append(pair(experiment))
            print(experiment, found[-1], flush=True)
        ours, theirs = (statistics.median(seconds) for seconds in imports.values())
        record = {
            "import": {"ratio": round(ours / theirs, 3), "processor_seconds": imports},
            "medians": {name: medians(found) for name, found in pairs.items()},
            "pairs": pairs,
            "command": f"python benchmarks/startup.py {REPETITIONS}",
            "run": f"innerloop train EXPERIMENT {' '.join(FLAGS)}",
            "environment": environment(),
        }
        path = Path(__file__).parent / "results" / "startup.json"
        path.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record["medians"], indent=2), record["import"]["ratio"])


if __name__ == "__main__":
    main()
