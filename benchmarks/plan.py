"""`plan` on five problems and three budgets: its choice, its forecast, and what was measured.

Every choice is compiled and run in a process of its own. Its peak is the high-water mark of the
process's resident memory over two calls, less what was resident before the arguments were there and
after a first call. Then every exact gradient is timed with one and with all tasks at a time
(thousands of them: with 8, 64, 512 and all), and so is every choice, in turn with the others. The
fastest of those whose forecast fits the budget is the best choice. For large programs, the forecast
of `Unroll()` on all tasks at once is compared with its peak too.

    python benchmarks/plan.py [--only sinusoid] [--rounds 3] [--peaks] [--replot]
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
from plan_problems import CASES, Case

import innerloop as il
from innerloop.diagnostics._plan import Plan, plan
from innerloop.diagnostics.compiled import compile_ahead
from innerloop.diagnostics.planning.amounts import format_bytes, parse_bytes
from innerloop.diagnostics.planning.choices import exact_gradients
from innerloop.diagnostics.planning.drafts import Request
from innerloop.gradients import gradient_name

RESULTS = Path(__file__).parent / "results" / "plan.json"
KEY = jax.random.key(1)


def planned(case: Case, budget: str) -> tuple[Plan, dict]:
    """The plan, and what there is to say about it."""
    made = plan(*case, budget)
    return made, {
        "budget": budget,
        "gradient": gradient_name(made.gradient),
        "chunk": made.chunk or made.tasks,
        "forecast_bytes": made.memory,
        "flops": made.flops,
        "compilations": made.compilations,
        "planning_seconds": made.seconds,
    }


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


def exhaustive(case: Case, chosen: set, rounds: int) -> list[dict]:
    """Every exact gradient with few and with all tasks at a time: forecast and seconds."""
    request = Request(*case)
    tried, calls = [], []
    for draft in request.drafts(exact_gradients(case.problem, case.adaptation, case.meta)):
        name = gradient_name(draft.gradient)
        more = {chunk for gradient, chunk in chosen if gradient == name}
        for chunk in sorted({*sizes(request.tasks), *more}):
            function = il.meta_value_and_grad(
                case.problem, case.adaptation, draft.gradient, chunk=chunk
            )
            compiled = compile_ahead(function, case.meta, case.episodes, KEY)
            jax.block_until_ready(compiled.call(case.meta, case.episodes, KEY))
            calls.append(compiled.call)
            tried.append({
                "gradient": name,
                "chunk": chunk,
                "flops": draft.cost.flops,
                "trace_bytes": draft.temporary * chunk // request.tasks,
                "forecast_bytes": compiled.memory,
                "seconds": [],
            })  # fmt: skip
    for _ in range(rounds):
        for row, call in zip(tried, calls, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call(case.meta, case.episodes, KEY))
            row["seconds"].append(time.perf_counter() - start)
    return tried


def sizes(tasks: int) -> list[int]:
    """Chunks that are timed; one task of thousands at a time would only take long."""
    return [1, tasks] if tasks <= 128 else [8, 64, 512, tasks]


def measure(name: str, rounds: int) -> dict:
    """One problem: its plans, what was measured of them, and the best choices."""
    make, budgets = CASES[name]
    case = make()
    plans, seen = [], {}
    for budget in budgets:
        made, record = planned(case, budget)
        place = (record["gradient"], record["chunk"])
        if place not in seen:
            seen[place] = measured(name, made.gradient, record["chunk"])
        record |= seen[place]
        record["forecast_ratio"] = record["forecast_bytes"] / record["measured_bytes"]
        plans.append(record)
        print(f"{name}, {budget}: {record}", flush=True)
    tried = exhaustive(case, set(seen), rounds)
    for record in plans:
        fits = [row for row in tried if row["forecast_bytes"] <= parse_bytes(record["budget"])]
        best = min(fits, key=lambda row: min(row["seconds"]), default=None)
        record["best"] = best and {key: best[key] for key in ("gradient", "chunk")}
        record["best_seconds"] = best and min(best["seconds"])
        record["choice_seconds"] = next(
            (min(row["seconds"]) for row in tried
             if (row["gradient"], row["chunk"]) == (record["gradient"], record["chunk"])),
            record["seconds"],
        )  # fmt: skip
    plain = measured(name, il.Unroll(), case_tasks(case))
    plain["forecast_ratio"] = plain["again_bytes"] / plain["measured_bytes"]
    print(f"{name}, Unroll() on all tasks: {plain}", flush=True)
    return {"problem": name, "what": make.__doc__, "plans": plans, "tried": tried, "plain": plain}


def measure_peaks_again(problem: dict) -> None:
    """The fresh processes alone, for the choices that are on record."""
    case = CASES[problem["problem"]][0]()
    gradients = exact_gradients(case.problem, case.adaptation, case.meta)
    by_name = {gradient_name(gradient): gradient for gradient in gradients}
    rows = [(row["gradient"], row["chunk"], row) for row in problem["plans"]]
    rows.append(("Unroll()", case_tasks(case), problem["plain"]))
    seen: dict = {}
    for name, chunk, row in rows:
        if (name, chunk) not in seen:
            seen[name, chunk] = measured(problem["problem"], by_name[name], chunk)
        row |= seen[name, chunk]
        row["forecast_ratio"] = row["again_bytes"] / row["measured_bytes"]


def case_tasks(case: Case) -> int:
    """How many tasks the batch has."""
    return jax.tree.leaves(case.episodes)[0].shape[0]


def show(result: dict) -> None:
    """The table of the documentation."""
    print("\n| problem | budget | choice | tasks at a time | forecast | measured | seconds | "
          "best by search | seconds |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    problems = result["problems"]
    for problem in problems:
        for row in problem["plans"]:
            best = row["best"] or {"gradient": "none", "chunk": ""}
            seconds = "" if row["best_seconds"] is None else f"{row['best_seconds']:.3f}"
            print(f"| {problem['problem']} | {row['budget']} | `{row['gradient']}` | "
                  f"{row['chunk']} | {format_bytes(row['forecast_bytes'])} | "
                  f"{format_bytes(row['measured_bytes'])} | {row['choice_seconds']:.3f} | "
                  f"`{best['gradient']}`, {best['chunk']} | {seconds} |")  # fmt: skip
    print("\n| `Unroll()`, all tasks | forecast | measured | ratio |\n|---|---|---|---|")
    for problem in problems:
        row = problem["plain"]
        print(f"| {problem['problem']} | {format_bytes(row['again_bytes'])} | "
              f"{format_bytes(row['measured_bytes'])} | {row['forecast_ratio']:.3f} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="problems whose name holds this; writes nothing")
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each")
    parser.add_argument("--replot", action="store_true", help="print the recorded table again")
    parser.add_argument(
        "--peaks", action="store_true", help="measure recorded choices' peaks again"
    )
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child)
        return
    if arguments.peaks:
        result = json.loads(RESULTS.read_text())
        result["peaks_command"] = "python benchmarks/plan.py --peaks"
        for problem in result["problems"]:
            measure_peaks_again(problem)
        RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        show(result)
        return
    if arguments.replot:
        show(json.loads(RESULTS.read_text()))
        return
    command = shlex.join(["python", "benchmarks/plan.py", *sys.argv[1:]])
    result = {"command": command, "machine": machine(), "problems": []}
    for name in CASES:
        if arguments.only in name:
            result["problems"].append(measure(name, arguments.rounds))
        if not arguments.only:  # after each, so that a run that is cut off leaves what it has
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    show(result)


if __name__ == "__main__":
    main()
