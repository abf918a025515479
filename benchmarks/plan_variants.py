"""Four ways for `plan` to choose, held against an exhaustive search.

- `today`: operations, bytes of temporary memory and calls, weighed by two constants
- `operations`: the fewest operations, with at most √tasks at a time
- `bytes`: operations, and 50 for each byte of temporary memory
- `limit`: the first of a fixed order that fits, with as many tasks at a time as take up to 16 MiB
- `none`: the first of a fixed order that fits, with at most √tasks at a time

All share one set of compiled programs. Each round times every program that may matter, beginning
with another one; the ratio of a round is the time of the choice over that of the fastest program
that fits the budget. What is slower than 1.6 times the fastest in the warm-up is left out of the
search.

    python benchmarks/plan_variants.py [--only sinusoid] [--rounds 5] [--resume]
"""

import argparse
import json
import math
import shlex
import sys
import time
from pathlib import Path

import jax
import numpy as np
from overhead import machine
from plan_problems import CASES

import innerloop as il
from innerloop.diagnostics._plan import chunk_sizes
from innerloop.diagnostics.compiled import compile_ahead
from innerloop.diagnostics.planning.amounts import parse_bytes
from innerloop.diagnostics.planning.choices import exact_gradients
from innerloop.diagnostics.planning.drafts import Request
from innerloop.diagnostics.planning.price import price
from innerloop.gradients import gradient_name

RESULTS = Path(__file__).parent / "results" / "plan-variants.json"
KEY = jax.random.key(1)
LIMIT = 2**24
"""Bytes of temporary memory that `limit` takes at a time."""
MARGIN = 1.6
"""Programs slower than this in the warm-up are not timed again."""
ORDER = ["sinusoid", "ridge", "quadratics", "head", "rates", "adam", "transformer", "images"]
CALLS = 3
"""Timed in a row; the fastest counts."""


def position(gradient):
    """The fixed order: mixed mode first, then what keeps less and less."""
    if isinstance(gradient, il.ForwardMode):
        return 9, gradient.chunk is not None
    loop = gradient.loop
    rank = 4 if isinstance(loop, il.Binomial) else 0
    if isinstance(loop, il.Segments):
        rank = 1 if loop.keep_inner_gradients else 2 if loop.length == 1 else 3
    return rank, not isinstance(gradient.inner, il.gradients.MixedMode)


def small(chunks, tasks):
    """The sizes up to the root of the number of tasks, largest first."""
    return [chunk for chunk in chunks if chunk <= max(1, math.isqrt(tasks))]


def orders(drafts, tasks):
    """By variant: the pairs of draft and chunk in the order in which they are tried."""
    chunks = chunk_sizes(tasks)
    few = small(chunks, tasks)
    everything = [(draft, chunk) for draft in drafts for chunk in chunks]
    at_most = [(draft, chunk) for draft in drafts for chunk in few]
    bytes_too = lambda pair: pair[0].cost.flops + 50 * pair[0].temporary * pair[1] / tasks
    by_order = sorted(drafts, key=lambda draft: position(draft.gradient))
    return {
        "today": sorted(
            everything, key=lambda pair: price(pair[0].cost, pair[0].temporary, tasks, pair[1])
        ),
        "operations": sorted(at_most, key=lambda pair: pair[0].cost.flops),
        "bytes": sorted(everything, key=bytes_too),
        "limit": [(draft, chunk) for draft in by_order for chunk in chunks],
        "none": [(draft, chunk) for draft in by_order for chunk in few],
    }


class Programs:
    """Compiled programs by gradient and chunk, each once."""

    def __init__(self, case):
        self.case, self.known = case, {}

    def get(self, gradient, chunk):
        place = (gradient_name(gradient), chunk)
        if place not in self.known:
            problem, adaptation, meta, episodes = self.case
            function = il.meta_value_and_grad(problem, adaptation, gradient, chunk=chunk)
            self.known[place] = compile_ahead(function, meta, episodes, KEY)
        return self.known[place]


def first_that_fits(order, programs, budget, tasks):
    """The choice, and how many programs were looked at, those that cannot fit left out."""
    looked, too_large = set(), {}
    for draft, chunk in order:
        name = gradient_name(draft.gradient)
        if draft.temporary * chunk / tasks > 2 * budget + 2**20:
            continue
        if any(share * chunk + rest > budget for share, rest in too_large.get(name, ())):
            continue
        program = programs.get(draft.gradient, chunk)
        looked.add((name, chunk))
        if program.memory <= budget:
            return (name, chunk), len(looked)
        rest = program.memory - program.temporary
        too_large.setdefault(name, []).append((program.temporary / chunk, rest))
    return None, len(looked)


def within_limit(order, programs, budget):
    """The choice of `limit`, by the temporary memory of one task; how many programs it looked at."""
    looked = set()
    for draft in {id(draft): draft for draft, _ in order}.values():
        name = gradient_name(draft.gradient)
        chunks = [chunk for other, chunk in order if other is draft]
        one = programs.get(draft.gradient, 1)
        looked.add((name, 1))
        if one.memory > budget:
            continue
        known = []
        for chunk in chunks:
            if chunk > 1 and one.temporary * chunk > LIMIT:
                continue
            if any(p.memory - p.temporary + p.temporary / n * chunk > budget for p, n in known):
                continue
            looked.add((name, chunk))
            program = programs.get(draft.gradient, chunk)
            if program.memory <= budget:
                return (name, chunk), len(looked)
            known.append((program, chunk))
    return None, len(looked)


def call_once(program, case):
    """Seconds of the fastest of a few calls."""
    taken = []
    for _ in range(CALLS):
        start = time.perf_counter()
        jax.block_until_ready(program.call(case.meta, case.episodes, KEY))
        taken.append(time.perf_counter() - start)
    return min(taken)


def measure(name, rounds):
    """One problem: the choices, and the ratios of each in every round."""
    make, budgets = CASES[name]
    case = make()
    request = Request(*case)
    drafts = request.drafts(exact_gradients(case.problem, case.adaptation, case.meta))
    tasks, programs = request.tasks, Programs(case)
    by_variant = orders(drafts, tasks)
    choices = {}
    for budget in budgets:
        for variant, order in by_variant.items():
            if variant == "limit":
                choice, looked = within_limit(order, programs, parse_bytes(budget))
            else:
                choice, looked = first_that_fits(order, programs, parse_bytes(budget), tasks)
            choices[budget, variant] = choice, looked
    chunks = {1, tasks} if tasks <= 1000 else {8, 512}
    for draft in drafts:
        for chunk in sorted(chunks):
            programs.get(draft.gradient, chunk)
    known = programs.known
    warm = {place: call_once(program, case) for place, program in known.items()}
    fits = {
        budget: [place for place in known if known[place].memory <= parse_bytes(budget)]
        for budget in budgets
    }
    timed = {choice for choice, _ in choices.values() if choice}
    for budget in budgets:
        least = min((warm[place] for place in fits[budget]), default=0)
        timed |= {place for place in fits[budget] if warm[place] <= MARGIN * least}
    timed = sorted(timed)
    seconds = {place: [] for place in timed}
    for turn in range(rounds):
        for i in np.roll(np.arange(len(timed)), -turn * max(1, len(timed) // rounds)):
            seconds[timed[i]].append(call_once(known[timed[i]], case))
    rows = []
    for budget in budgets:
        rivals = [place for place in fits[budget] if place in seconds]
        best = [min(seconds[place][i] for place in rivals) for i in range(rounds)]
        for variant in by_variant:
            choice, looked = choices[budget, variant]
            ratios = choice and [t / b for t, b in zip(seconds[choice], best, strict=True)]
            rows.append({
                "budget": budget,
                "variant": variant,
                "gradient": choice and choice[0],
                "chunk": choice and choice[1],
                "compiled": looked,
                "ratios": ratios,
                "median": ratios and float(np.median(ratios)),
            })  # fmt: skip
            print(name, rows[-1], flush=True)
    tried = [
        {"gradient": place[0], "chunk": place[1], "bytes": known[place].memory,
         "warm_seconds": warm[place], "seconds": seconds.get(place)}
        for place in known
    ]  # fmt: skip
    return {"problem": name, "what": make.__doc__, "tasks": tasks, "choices": rows, "tried": tried}


def show(result):
    """The worst median of each variant, by problem."""
    variants = list(dict.fromkeys(row["variant"] for row in result["problems"][0]["choices"]))
    print("| problem | " + " | ".join(variants) + " |\n|---" * 1 + "|---" * len(variants) + "|")
    for problem in result["problems"]:
        worst = [
            max(row["median"] or math.inf for row in problem["choices"] if row["variant"] == name)
            for name in variants
        ]
        print(f"| {problem['problem']} | " + " | ".join(f"{w:.2f}" for w in worst) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="problems whose name holds this; writes nothing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--resume", action="store_true", help="leave out what is on record")
    arguments = parser.parse_args()
    command = shlex.join(["python", "benchmarks/plan_variants.py", *sys.argv[1:]])
    result = {"command": command, "machine": machine(), "problems": []}
    if arguments.resume:
        result = json.loads(RESULTS.read_text())
    known = {problem["problem"] for problem in result["problems"]}
    for name in sorted(CASES, key=ORDER.index):
        if arguments.only in name and name not in known:
            result["problems"].append(measure(name, arguments.rounds))
        if not arguments.only:
            RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    show(result)


if __name__ == "__main__":
    main()
