"""What the library costs: one outer step of it next to the same computation written by hand in JAX.

The loop by hand knows one algorithm and checks nothing. Both sides call the same model, loss, outer
optimizer and data, and keep the loss, the meta-parameters and the optimizer's state. A second
compilation of the loop by hand is timed along with them: its ratio, one but for noise, says how far
the other ratio can be trusted.

    python benchmarks/overhead.py [--rounds 1.0] [--only omniglot] [--hlo FOLDER]
"""

import argparse
import json
import os
import platform
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from innerloop import Episode, Examples, meta_value_and_grad
from innerloop.models import Model, conv4, cross_entropy, mean_squared_error, mlp
from innerloop.recipes import maml
from innerloop.tasks import SinusoidTasks

RESULTS = Path(__file__).parent / "results" / "overhead.json"
ALLOWED = 1.02


class Case(NamedTuple):
    """One computation to be measured.

    - `episodes`: batches of tasks, `(outer steps, tasks, ...)`; all the outer steps are taken in
      one compiled call, so that many hide the cost of the call
    - `rounds`: calls of each side
    """

    name: str
    model: Model
    loss: Callable
    rate: float
    steps: int
    chunk: int | None
    episodes: Episode
    rounds: int


def cases() -> list[Case]:
    """Sinusoid regression, and images of Omniglot's size."""
    tasks, many = SinusoidTasks(10, 10), 50
    batches = jax.vmap(lambda key: tasks.sample(key, 25))(jax.random.split(jax.random.key(1), many))
    network = mlp([1, 40, 40, 1])
    one = ("omniglot K=1 chunk=1", conv4(5, 64), cross_entropy, 0.4, 1, 1, random_images(8), 60)
    return [
        Case("sinusoid K=1", network, mean_squared_error, 0.01, 1, None, batches, 300),
        Case("sinusoid K=5", network, mean_squared_error, 0.01, 5, None, batches, 200),
        Case(*one),
    ]


def random_images(tasks: int) -> Episode:
    """One batch of 5-way 1-shot tasks with 5 queries per class: 28 × 28 images of noise."""
    support_key, query_key = jax.random.split(jax.random.key(2))

    def examples(key, shots: int) -> Examples:
        inputs = jax.random.uniform(key, (1, tasks, 5 * shots, 28, 28, 1))
        targets = jnp.tile(jnp.arange(5), (1, tasks, shots))
        return Examples(inputs, targets)

    return Episode(examples(support_key, 1), examples(query_key, 5))


def by_library(case: Case) -> Callable:
    """`(meta, episodes, key) -> (loss, gradient)` by innerloop."""
    recipe = maml(case.model, case.loss, case.rate, case.steps)
    value_and_grad = meta_value_and_grad(*recipe[:3], chunk=case.chunk)

    def library(meta: PyTree, episodes: Episode, key):
        (loss, _), grads = value_and_grad(meta, episodes, key)
        return loss, grads

    return library


def by_hand(case: Case) -> Callable:
    """The same as one would write it for this algorithm alone."""

    def model_loss(params, batch):
        return case.loss(case.model.apply(params, batch.inputs, None, None), batch)[0]

    def task_loss(meta, episode):
        params = meta
        for _ in range(case.steps):
            grads = jax.grad(model_loss)(params, episode.support)
            params = jax.tree.map(lambda p, g: p - case.rate * g, params, grads)
        return model_loss(params, episode.query)

    def all_at_once(meta, episodes, key):
        def mean_loss(meta):
            return jnp.mean(jax.vmap(task_loss, (None, 0))(meta, episodes))

        return jax.value_and_grad(mean_loss)(meta)

    def one_by_one(meta, episodes, key):
        def body(total, episode):
            return jax.tree.map(jnp.add, total, jax.value_and_grad(task_loss)(meta, episode)), None

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, meta))
        total, _ = jax.lax.scan(body, zero, episodes)
        tasks = episodes.query.targets.shape[0]
        return jax.tree.map(lambda leaf: leaf / tasks, total)

    return all_at_once if case.chunk is None else one_by_one


def outer_step(value_and_grad: Callable) -> Callable:
    """One step of Adam, `(state, episodes, key) -> (state, loss)`."""
    optimizer = optax.adam(1e-3)

    def step(state, episodes, key):
        meta, moments = state
        loss, grads = value_and_grad(meta, episodes, key)
        updates, moments = optimizer.update(grads, moments)
        return (optax.apply_updates(meta, updates), moments), loss

    return step


def outer_steps(value_and_grad: Callable) -> Callable:
    """`outer_step` over the leading axis of `episodes`, in one call."""
    step = outer_step(value_and_grad)

    def steps(state, episodes, key):
        keys = jax.random.split(key, episodes.query.targets.shape[0])
        return jax.lax.scan(lambda state, x: step(state, *x), state, (episodes, keys))

    return steps


def operations(compiled) -> Counter:
    """How often each operation occurs in the optimised program."""
    return Counter(re.findall(r"^\s*(?:ROOT )?%\S+ = .*? ([a-z\-]+)\(", compiled.as_text(), re.M))


def measure(case: Case, scale: float, hlo: Path | None) -> dict:
    """Everything about one case."""
    sides = {"library": by_library(case), "hand": by_hand(case), "hand again": by_hand(case)}
    meta = case.model.init(jax.random.key(0))
    state = (meta, optax.adam(1e-3).init(meta))
    key = jax.random.key(3)
    first = jax.tree.map(lambda leaf: leaf[0], case.episodes)
    record: dict = {"case": case.name, "outer_steps_per_call": len(case.episodes.query.targets)}

    single = record["outer_steps_per_call"] == 1
    data = first if single else case.episodes
    gradients, calls, programs = {}, {}, {}
    for name, side in sides.items():
        start = time.perf_counter()
        traced = jax.jit(outer_step(side)).lower(state, first, key)
        traced_at = time.perf_counter()
        programs[name] = program = traced.compile()
        compiled_at = time.perf_counter()
        costs = program.cost_analysis()
        record[name] = {
            "trace_seconds": traced_at - start,
            "compile_seconds": compiled_at - traced_at,
            "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
            "flops": costs["flops"],
            "bytes_accessed": costs["bytes accessed"],
            "operations": sum(operations(program).values()),
        }
        if hlo is not None:
            hlo.mkdir(parents=True, exist_ok=True)
            (hlo / f"{case.name}, {name}.txt".replace(" ", "_")).write_text(program.as_text())
        # After one step from zero, Adam's first moment is the gradient times 1 - b1.
        gradients[name] = jax.tree.map(lambda m: m / 0.1, program(state, first, key)[0][1][0].mu)
        calls[name] = program
        if not single:
            calls[name] = jax.jit(outer_steps(side)).lower(state, data, key).compile()
    counts = {name: operations(program) for name, program in programs.items()}
    record["more_operations"] = dict(counts["library"] - counts["hand"])
    record["fewer_operations"] = dict(counts["hand"] - counts["library"])
    pairs = zip(*(jax.tree.leaves(gradients[name]) for name in ("library", "hand")), strict=True)
    record["gradient_difference"] = max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs)
    record["gradient_size"] = max(
        float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(gradients["hand"])
    )

    wall, processor = interleaved(calls, (state, data, key), int(case.rounds * scale))
    steps = record["outer_steps_per_call"]
    for name in sides:
        record[name]["milliseconds"] = 1e3 * float(np.median(wall[name])) / steps
    record["rounds"] = len(wall["hand"])
    for clock, seconds in (("wall", wall), ("processor", processor)):
        record[f"{clock}_ratio"] = ratio(seconds["library"], seconds["hand"])
        record[f"{clock}_ratio_of_hand_to_itself"] = ratio(seconds["hand again"], seconds["hand"])
    return record


def interleaved(calls: dict[str, Callable], arguments: tuple, rounds: int) -> tuple[dict, dict]:
    """Wall and processor seconds of each call, taken in turn; the one that begins changes."""
    names = list(calls)
    for name in names * 3:
        jax.block_until_ready(calls[name](*arguments))
    wall, processor = {name: [] for name in names}, {name: [] for name in names}
    for i in range(max(rounds, 6)):
        shift = i % len(names)
        order = names[shift:] + names[:shift]
        for name in order if i // len(names) % 2 else order[::-1]:
            start, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(calls[name](*arguments))
            wall[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - cpu)
    as_arrays = lambda seconds: {name: np.asarray(row) for name, row in seconds.items()}
    return as_arrays(wall), as_arrays(processor)


def ratio(ours: np.ndarray, theirs: np.ndarray) -> dict:
    """Median of the paired ratios, with a 95 % bootstrap interval of that median."""
    ratios = ours / theirs
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high)}


def machine() -> dict:
    """What the numbers were measured on."""
    return {
        "device": jax.devices()[0].device_kind,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
    }


def show(record: dict) -> None:
    """One case as a few lines of a table."""
    print(f"\n{record['case']}  ({record['rounds']} rounds, "
          f"{record['outer_steps_per_call']} outer steps per call)")  # fmt: skip
    print(f"  {'':24}{'library':>14}{'hand':>14}{'ratio':>9}")
    rows = [
        ("ms per outer step", "milliseconds", 1, "14.3f"),
        ("temporary memory, kB", "temporary_bytes", 1e-3, "14.1f"),
        ("MFLOP (loop body once)", "flops", 1e-6, "14.3f"),
        ("operations", "operations", 1, "14.0f"),
        ("trace, s", "trace_seconds", 1, "14.2f"),
        ("compile, s", "compile_seconds", 1, "14.2f"),
    ]
    for label, name, unit, form in rows:
        ours, theirs = record["library"][name], record["hand"][name]
        print(f"  {label:24}{ours * unit:{form}}{theirs * unit:{form}}{ours / theirs:9.4f}")
    for clock in ("wall", "processor"):
        ours, null = record[f"{clock}_ratio"], record[f"{clock}_ratio_of_hand_to_itself"]
        print(f"  {clock} time, paired: {ours['median']:.4f} [{ours['low']:.4f}, "
              f"{ours['high']:.4f}]; hand to itself {null['median']:.4f} [{null['low']:.4f}, "
              f"{null['high']:.4f}]")  # fmt: skip
    print(f"  largest gradient difference {record['gradient_difference']:.1e} "
          f"(largest entry {record['gradient_size']:.1e})", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=float, default=1.0, help="scales the number of calls")
    parser.add_argument("--only", default="", help="cases whose name holds this; writes no results")
    parser.add_argument("--hlo", type=Path, help="folder for the optimised programs")
    arguments = parser.parse_args()
    before, records = machine(), []
    for case in cases():
        if arguments.only in case.name:
            records.append(measure(case, arguments.rounds, arguments.hlo))
            show(records[-1])
    slowest = max(record["wall_ratio"]["median"] for record in records)
    print(f"\nlargest wall ratio {slowest:.4f}; allowed {ALLOWED}")
    if arguments.only:
        return
    command = shlex.join(["python", "benchmarks/overhead.py", *sys.argv[1:]])
    RESULTS.parent.mkdir(exist_ok=True)
    result = {"command": command, "machine": before, "allowed_ratio": ALLOWED, "cases": records}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
