"""`plan` held against an exhaustive search, and the compiler's forecast against measured peaks.

The search: for each problem and budget, the choice of `plan` and every exact gradient with one and
with all tasks at a time (thousands of them: with 8 and 512) are compiled once and timed in rounds,
each of which begins with another program. The ratio of a round is the time of the choice over that
of the fastest program whose forecast fits the budget.

The peaks: `Unroll()` on all tasks is compiled and run in a process of its own. Its peak is the
high-water mark of the process's resident memory over two calls, less what was resident before the
arguments were there and after a first call.

    python benchmarks/plan.py [--only sinusoid] [--rounds 5]           # results/plan-choices.json
    python benchmarks/plan.py --peaks [--only sinusoid] [--replot]    # results/plan.json
"""

import argparse
import ctypes
import gc
import json
import pickle
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from overhead import machine
from plan_problems import CASES
from runs import RESULTS, markdown_table, write_json

import innerloop as il
from innerloop.batches import task_count
from innerloop.diagnostics import plan
from innerloop.diagnostics.amounts import format_bytes, parse_bytes
from innerloop.diagnostics.candidates import exact_gradients
from innerloop.diagnostics.compiled import compile_ahead

KEY = jax.random.key(1)


def measured(name: str, gradient: il.extend.MetaGradient, chunk: int) -> dict:
    """Peak and time of one choice, in a fresh process."""
    with tempfile.NamedTemporaryFile(suffix=".pickle") as file:
        file.write(pickle.dumps((name, gradient, chunk)))
        file.flush()
        command = [sys.executable, __file__, "--child", file.name]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(answer.splitlines()[-1])


def child(path: Path) -> None:
    """What the fresh process does: compile, let go of everything, then watch two calls."""
    name, gradient, chunk = pickle.loads(path.read_bytes())
    case = CASES[name][0]()
    function = il.meta_value_and_grad(case.problem, case.adaptation, gradient, chunk=chunk)
    compiled = compile_ahead(function, case.meta, case.episodes, KEY)
    arrays = pickle.dumps(jax.tree.map(np.asarray, (case.meta, case.episodes)))
    kept = Path(path.parent, f"{path.name}.arrays")
    kept.write_bytes(arrays)
    # Threads and libraries that the first call brings are no part of what a call takes.
    jax.block_until_ready(compiled.call(case.meta, case.episodes, KEY))
    del case, arrays
    let_go()
    before = resident("VmRSS")
    with kept.open("rb") as file:
        meta, episodes = jax.tree.map(jax.numpy.asarray, pickle.load(file))
    kept.unlink()
    Path("/proc/self/clear_refs").write_text("5")  # the mark starts from here
    wall, processor = [], []
    for _ in range(2):
        start, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(compiled.call(meta, episodes, KEY))
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - cpu)
        time.sleep(0.5)  # a call's memory is given back a moment after its result is there
    peak = resident("VmHWM") - before
    print(json.dumps({
        "measured_bytes": peak,
        "again_bytes": compiled.memory,
        "seconds": min(wall),
        "processor_seconds": min(processor),
    }))  # fmt: skip


def resident(field: str) -> int:
    """Bytes of this process that are in memory, now (`VmRSS`) or at most (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def let_go() -> None:
    """Give what is free back to the system, so that it does not hide what comes after."""
    jax.clear_caches()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def search(name: str, rounds: int) -> list[dict]:
    """The choices for one problem, and their ratios to the best of the search, in every round."""
    make, budgets = CASES[name]
    case = make()
    tasks = task_count(case.episodes)
    plans = {budget: plan(*case, budget) for budget in budgets}
    pairs = {(made.gradient, made.chunk or tasks) for made in plans.values()}
    for gradient in exact_gradients(case.problem, case.adaptation, case.meta):
        pairs |= {(gradient, chunk) for chunk in ([1, tasks] if tasks <= 1000 else [8, 512])}
    programs, seconds = {}, {pair: [] for pair in pairs}
    for gradient, chunk in pairs:
        function = il.meta_value_and_grad(case.problem, case.adaptation, gradient, chunk=chunk)
        programs[gradient, chunk] = compile_ahead(function, case.meta, case.episodes, KEY)
        jax.block_until_ready(programs[gradient, chunk].call(case.meta, case.episodes, KEY))
    for turn in range(rounds):
        order = list(pairs)
        for i in np.roll(np.arange(len(order)), -turn * max(1, len(order) // rounds)):
            start = time.perf_counter()
            jax.block_until_ready(programs[order[i]].call(case.meta, case.episodes, KEY))
            seconds[order[i]].append(time.perf_counter() - start)
    rows = []
    for budget, made in plans.items():
        fits = [pair for pair in pairs if programs[pair].memory <= parse_bytes(budget)]
        best = np.min([seconds[pair] for pair in fits], axis=0)
        ratios = np.asarray(seconds[made.gradient, made.chunk or tasks]) / best
        rows.append({
            "problem": name,
            "budget": budget,
            "choice": il.gradients.gradient_name(made.gradient),
            "chunk": made.chunk or tasks,
            "tasks": tasks,
            "programs": len(fits),
            "ratios": ratios.round(3).tolist(),
        })  # fmt: skip
        ratio = np.median(ratios)
        print(f"{name}, {budget}: {made.summary()} {ratio:.2f} times the best", flush=True)
    return rows


def peaks(name: str) -> dict:
    """`Unroll()` on all tasks: forecast and measured peak."""
    case = CASES[name][0]()
    row = measured(name, il.Unroll(), task_count(case.episodes))
    row["forecast_ratio"] = row["again_bytes"] / row["measured_bytes"]
    return {"problem": name, "what": CASES[name][0].__doc__, "plain": row}


def show(result: dict) -> None:
    """The table of choices or of peaks, for the documentation."""
    if "choices" in result:
        headings = ("problem", "memory", "chosen", "tasks at a time", "time / best")
        rows = [
            (
                row["problem"],
                row["budget"],
                f"`{row['choice']}`",
                f"{row['chunk']:,} of {row['tasks']:,}",
                f"{np.median(row['ratios']):.2f}",
            )
            for row in result["choices"]
        ]
    else:
        headings = ("`Unroll()`, all tasks", "forecast", "measured", "ratio")
        rows = [
            (
                row["problem"],
                format_bytes(row["plain"]["again_bytes"]),
                format_bytes(row["plain"]["measured_bytes"]),
                f"{row['plain']['forecast_ratio']:.3f}",
            )
            for row in result["problems"]
        ]
    print(markdown_table(headings, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="problems whose name holds this; writes nothing")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each program")
    parser.add_argument("--peaks", action="store_true", help="measure the peaks instead")
    parser.add_argument("--replot", action="store_true", help="print what is recorded")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    file = "plan.json" if arguments.peaks else "plan-choices.json"
    if arguments.child:
        child(arguments.child)
        return
    if arguments.replot:
        show(json.loads((RESULTS / file).read_text()))
        return
    names = [name for name in CASES if arguments.only in name]
    command = shlex.join(["python", "benchmarks/plan.py", *sys.argv[1:]])
    result = {"command": command, "machine": machine()}
    if arguments.peaks:
        result |= {"problems": list(map(peaks, names))}
    else:
        result |= {"choices": [row for name in names for row in search(name, arguments.rounds)]}
    show(result)
    if not arguments.only:
        write_json(file, result)


if __name__ == "__main__":
    main()
